"""Every encoding that a camera driver sends becomes the same picture."""

from __future__ import annotations

import zlib

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from m2distill_policy.errors import ObservationError
from m2distill_policy.images.encodings import BYTES_PER_PIXEL, check_layout, compressed_to_rgb, raw_to_rgb
from m2distill_policy.images.jpeg_png import MAX_PIXELS

HEIGHT, WIDTH = 16, 24
#: Smooth, so that colour sampled at half the resolution comes back nearly as it was.
_ROWS, _COLUMNS = np.mgrid[0:HEIGHT, 0:WIDTH]
RGB: NDArray[np.uint8] = np.stack(
    [40 + 6 * _ROWS, 60 + 5 * _COLUMNS, 200 - 4 * _ROWS - 2 * _COLUMNS], axis=2, dtype=np.uint8, casting="unsafe"
)
_ALPHA = np.full((HEIGHT, WIDTH, 1), 9, dtype=np.uint8)


def encoded(encoding: str) -> NDArray[np.uint8]:
    """RGB as a driver would send it, from the definition of the encoding."""
    if encoding.startswith("bayer"):
        mosaic = np.zeros((HEIGHT, WIDTH, 1), dtype=np.uint8)
        for i, colour in enumerate(encoding.removeprefix("bayer_").removesuffix("8")):
            row, column = divmod(i, 2)
            mosaic[row::2, column::2, 0] = RGB[row::2, column::2, "rgb".index(colour)]
        return mosaic
    if BYTES_PER_PIXEL[encoding] == 2:
        # BT.601, studio range: two pixels share U and V; UYVY or YUYV.
        r, g, b = (RGB[..., i].astype(np.float64) for i in range(3))
        y = 16 + 0.257 * r + 0.504 * g + 0.098 * b
        u = (128 - 0.148 * r - 0.291 * g + 0.439 * b).reshape(HEIGHT, -1, 2).mean(2)
        v = (128 + 0.439 * r - 0.368 * g - 0.071 * b).reshape(HEIGHT, -1, 2).mean(2)
        chroma = np.stack([u, v], axis=2).reshape(HEIGHT, WIDTH)
        first, second = (y, chroma) if encoding in ("yuv422_yuy2", "yuyv") else (chroma, y)
        return np.round(np.stack([first, second], axis=2)).astype(np.uint8)
    return {
        "rgb8": RGB,
        "bgr8": RGB[:, :, ::-1],
        "rgba8": np.concatenate([RGB, _ALPHA], axis=2),
        "bgra8": np.concatenate([RGB[:, :, ::-1], _ALPHA], axis=2),
        "mono8": RGB[:, :, :1],
    }[encoding]


@pytest.mark.parametrize("encoding", sorted(BYTES_PER_PIXEL))
@pytest.mark.parametrize("padding", [0, 7])
def test_an_encoding_becomes_rgb(encoding: str, padding: int) -> None:
    row = WIDTH * BYTES_PER_PIXEL[encoding]
    rows = np.zeros((HEIGHT, row + padding), dtype=np.uint8)
    rows[:, :row] = np.ascontiguousarray(encoded(encoding)).reshape(HEIGHT, row)
    got = raw_to_rgb(encoding, HEIGHT, WIDTH, row + padding, rows.ravel())
    assert got.shape == RGB.shape and got.dtype == np.uint8
    wanted = np.repeat(RGB[:, :, :1], 3, axis=2) if encoding == "mono8" else RGB
    exact = BYTES_PER_PIXEL[encoding] != 2 and not encoding.startswith("bayer")
    inner = np.s_[2:-2, 2:-2]  # interpolation has nothing to look at beyond the edge
    difference = np.abs(got.astype(int) - wanted)[inner]
    assert difference.max() <= (0 if exact else 4)


def coded(codec: str, picture: NDArray[np.uint8], *parameters: int) -> NDArray[np.uint8]:
    """JPEG or PNG bytes of a grey picture or of one in OpenCV's order."""
    return np.asarray(cv2.imencode(f".{codec}", picture, list(parameters))[1], dtype=np.uint8).ravel()


def test_compressed_pictures() -> None:
    png = coded("png", RGB[:, :, ::-1])
    np.testing.assert_array_equal(compressed_to_rgb("rgb8; png compressed bgr8", png), RGB)
    jpeg = coded("jpg", RGB[:, :, ::-1], cv2.IMWRITE_JPEG_QUALITY, 95)
    assert np.abs(compressed_to_rgb("jpeg", jpeg).astype(int) - RGB).mean() < 4
    for broken in (png[: len(png) // 8], np.zeros(0, dtype=np.uint8), np.arange(200, dtype=np.uint8)):
        with pytest.raises(ObservationError):
            compressed_to_rgb("png", broken)


#: Encodings of sensor_msgs/image_encodings.hpp, and what image_transport or a driver may have given to the codec.
ORIGINALS = (
    *BYTES_PER_PIXEL,
    *("mono16", "16UC1", "16SC1", "32FC1", "8UC1", "8UC3", "TYPE_16UC1", "rgb16", "bgr16", "bayer_rggb16", "nv12"),
)
GIVEN = ("", "bgr8", "rgb8", "bgra8", "mono8", "mono16", "bgr16", "bayer_rggb8", "8UC1")
FORMATS = (
    *(
        f"{original}; {codec} compressed {given}"
        for original in ORIGINALS
        for codec in ("jpeg", "png")
        for given in GIVEN
    ),
    *("jpeg", "jpg", "png", "JPEG", "", "rgb8", "webp", "h264", "tiff", "rgb8; jpeg", "16UC1; compressedDepth png"),
    *("32FC1; compressedDepth", "rgb8; tiff compressed bgr8", "rgb8; jpeg compressed bgr8; more", ";;;", "x" * 10**6),
)


def _patches(size: int = 48) -> NDArray[np.uint8]:
    """RGB: left half red, right half blue."""
    picture = np.zeros((size, size, 3), dtype=np.uint8)
    picture[:, : size // 2, 0] = 220
    picture[:, size // 2 :, 2] = 220
    return picture


def _contents(form: str) -> dict[str, NDArray[np.uint8]]:
    """What a publisher of ``form`` may have put into it, by name: OpenCV's codecs get blue first, or grey."""
    bgr = _patches()[:, :, ::-1]
    contents = {"colour": bgr, "alpha": np.dstack([bgr, np.full(bgr.shape[:2], 255, np.uint8)])}
    contents["deep"] = bgr.astype(np.uint16) * 257
    pattern = form.partition(";")[0]
    if pattern.startswith("bayer") and pattern in BYTES_PER_PIXEL:
        mosaic = np.zeros(bgr.shape[:2], dtype=np.uint8)
        for i, colour in enumerate(pattern.removeprefix("bayer_").removesuffix("8")):
            mosaic[i // 2 :: 2, i % 2 :: 2] = _patches()[i // 2 :: 2, i % 2 :: 2, "rgb".index(colour)]
        contents["mosaic"] = mosaic
    else:
        contents["grey"] = cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY)
    return contents


def test_of_every_format_either_red_is_red_or_it_is_refused() -> None:
    taken = set()
    for form in FORMATS:
        for name, content in _contents(form).items():
            for codec in ("jpg", "png"):
                if codec == "jpg" and name in ("alpha", "deep"):
                    continue
                quality = (cv2.IMWRITE_JPEG_QUALITY, 95) if codec == "jpg" else ()
                try:
                    got = compressed_to_rgb(form, coded(codec, content, *quality)).astype(int)
                except ObservationError as error:
                    assert len(str(error)) < 600
                    continue
                taken.add((form, name))
                assert name != "deep", f"{form}: 16 bits were taken for 8"
                red, blue = got[8:40, 6:18].mean(axis=(0, 1)), got[8:40, 30:42].mean(axis=(0, 1))
                if name == "grey":
                    assert form.startswith(("mono8", "jpeg", "jpg", "png", "JPEG")), f"{form}: colour has become grey"
                else:
                    assert red[0] > 150 > 70 > red[2] and blue[2] > 150 > 70 > blue[0], f"{form}, {name} in {codec}"
    accepted = {form for form, _ in taken}
    assert {"jpeg", "png", "rgb8; jpeg compressed bgr8", "bgr8; png compressed bgr8"} <= accepted
    for pattern in ("rggb", "bggr", "gbrg", "grbg"):
        assert (f"bayer_{pattern}8; jpeg compressed ", "mosaic") in taken
        assert (f"bayer_{pattern}8; jpeg compressed bgr8", "colour") in taken
    for form in accepted:
        assert "16" not in form and "32FC1" not in form, form


def photograph(seed: int, height: int = 240, width: int = 320) -> NDArray[np.uint8]:
    """A picture (H, W, 3) with edges, noise and, for some seeds, a lower half of exactly the grey of missing data."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    noisy = picture + rng.normal(0, 4, picture.shape)
    if seed % 3 == 0:
        noisy[height // 2 :] = 128
    return np.clip(noisy, 0, 255).astype(np.uint8)


JPEG_KINDS = (
    (),
    (cv2.IMWRITE_JPEG_RST_INTERVAL, 5),
    (cv2.IMWRITE_JPEG_OPTIMIZE, 1),
    (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422),
    (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
)


def test_whole_jpegs_of_any_size_and_sampling_are_taken() -> None:
    for seed in range(8):
        for height, width in ((240, 320), (1, 1), (8, 8), (17, 200), (200, 17), (33, 49)):
            picture = photograph(seed, height, width)
            for kind in JPEG_KINDS:
                data = coded("jpg", picture if seed % 2 else picture[:, :, 0], cv2.IMWRITE_JPEG_QUALITY, 80, *kind)
                assert compressed_to_rgb("jpeg", data).shape == (height, width, 3)
                # Webcams leave a few bytes before the end, and fill up their buffers after it.
                more = np.concatenate([data[:-2], [0, 0], data[-2:], np.zeros(37)]).astype(np.uint8)
                assert compressed_to_rgb("jpeg", more).shape == (height, width, 3)


def test_jpegs_that_lost_a_packet_are_refused() -> None:
    rng = np.random.default_rng(0)
    missed = dict.fromkeys(("lost", "zeros", "cut", "cut and ended"), 0)
    for seed in range(60):
        picture = photograph(3 * seed + 1)
        kind = JPEG_KINDS[seed % len(JPEG_KINDS)]
        quality = int(rng.choice([50, 80, 95]))
        whole = coded("jpg", picture if seed % 4 else picture[:, :, 0], cv2.IMWRITE_JPEG_QUALITY, quality, *kind)
        data, size = whole.tobytes(), int(rng.choice([512, 1400, 4096]))
        at = int(rng.integers(700, len(data) - size - 20))
        damaged = {
            "lost": data[:at] + data[at + size :],
            "zeros": data[:at] + bytes(size) + data[at + size :],
            "cut": data[:at],
            "cut and ended": data[:at] + b"\xff\xd9",
        }
        if kind == (cv2.IMWRITE_JPEG_OPTIMIZE, 1):
            del damaged["zeros"]  # its codes may be zeros
        for name, content in damaged.items():
            try:
                compressed_to_rgb("jpeg", np.frombuffer(content, dtype=np.uint8))
            except ObservationError:
                continue
            missed[name] += 1
    assert missed["cut"] == missed["cut and ended"] == missed["zeros"] == 0
    assert missed["lost"] <= 2, "JPEG has no checksum: a lost piece may decode to as many blocks by chance"


def test_progressive_jpegs_are_refused() -> None:
    with pytest.raises(ObservationError, match="progressive"):
        compressed_to_rgb("jpeg", coded("jpg", photograph(1), cv2.IMWRITE_JPEG_PROGRESSIVE, 1))


def test_no_changed_byte_of_a_png_is_taken() -> None:
    data = coded("png", photograph(1, 24, 32))
    rng = np.random.default_rng(0)
    for _ in range(500):
        changed = data.copy()
        changed[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        with pytest.raises(ObservationError):
            compressed_to_rgb("png", changed[: int(rng.integers(1, len(data) + 1))] if rng.random() < 0.2 else changed)


def test_damaged_headers_end_in_one_error() -> None:
    rng = np.random.default_rng(0)
    for codec in ("jpg", "png"):
        data = coded(codec, photograph(2, 24, 32))
        for _ in range(1500):
            changed = data.copy()
            for _ in range(int(rng.integers(1, 4))):
                changed[int(rng.integers(min(700, len(data))))] = int(rng.integers(256))
            try:
                picture = compressed_to_rgb("jpeg", changed)
                assert picture.ndim == 3 and picture.size <= 3 * MAX_PIXELS
            except ObservationError as error:
                assert len(str(error)) < 600


def test_an_announced_size_is_bounded_before_anything_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    jpeg = coded("jpg", photograph(1, 16, 16)).tobytes()
    start = jpeg.index(b"\xff\xc0") + 5
    png = coded("png", photograph(1, 16, 16)).tobytes()
    header = png[12:16] + (60000).to_bytes(4, "big") * 2 + png[24:29]
    large = {
        "jpeg": jpeg[:start] + (60000).to_bytes(2, "big") * 2 + jpeg[start + 4 :],
        "png": png[:12] + header + zlib.crc32(header).to_bytes(4, "big") + png[33:],
    }
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("it was decoded"))
    for form, content in large.items():
        with pytest.raises(ObservationError, match="60000 x 60000"):
            compressed_to_rgb(form, np.frombuffer(content, dtype=np.uint8))
    for height, width in ((60000, 60000), (2**32 - 1, 2**32 - 1), (1, 2**31)):
        with pytest.raises(ObservationError):
            check_layout("rgb8", height, width, 3 * width, 100)


def test_what_does_not_fit_together_is_refused() -> None:
    data = np.zeros(HEIGHT * WIDTH * 3, dtype=np.uint8)
    with pytest.raises(ObservationError, match="'32FC1' is not known; allowed are rgb8"):
        raw_to_rgb("32FC1", HEIGHT, WIDTH, WIDTH * 4, data)
    with pytest.raises(ObservationError, match=r"16 rows of 72 bytes .* has 1151 bytes"):
        raw_to_rgb("rgb8", HEIGHT, WIDTH, WIDTH * 3, data[:-1])
    with pytest.raises(ObservationError, match="even numbers of rows and columns"):
        raw_to_rgb("bayer_rggb8", 15, WIDTH, WIDTH, data)
    rng = np.random.default_rng(0)
    encodings = [*BYTES_PER_PIXEL, "rgb16", ""]
    for _ in range(3000):
        height, width, step = (int(v) for v in rng.integers(0, 40, size=3))
        size = int(rng.integers(0, 1600))
        try:
            picture = raw_to_rgb(encodings[rng.integers(len(encodings))], height, width, step, data[:size])
            assert picture.shape == (height, width, 3)
        except ObservationError as error:
            assert str(error)


@pytest.mark.ros
def test_on_ros_2_a_compressed_image_is_what_it_is_elsewhere() -> None:
    pytest.importorskip("rclpy", reason="no ROS 2")
    from array import array

    from sensor_msgs.msg import CompressedImage

    from m2distill_policy.ros.images import message_to_rgb

    for form in (form for form in FORMATS if len(form) < 1000):
        for content in _contents(form).values():
            data = coded("png", content)
            frame = CompressedImage(format=form, data=array("B", data.tobytes()))
            try:
                wanted = compressed_to_rgb(form, data)
            except ObservationError:
                with pytest.raises(ObservationError):
                    message_to_rgb(frame)
            else:
                np.testing.assert_array_equal(message_to_rgb(frame), wanted)
