"""Every encoding that a camera driver sends becomes the same picture."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from m2distill_policy.errors import ObservationError
from m2distill_policy.node.pictures import CHANNELS, rgb_of, rgb_of_compressed

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
    if CHANNELS[encoding] == 2:
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


@pytest.mark.parametrize("encoding", sorted(CHANNELS))
@pytest.mark.parametrize("padding", [0, 7])
def test_an_encoding_becomes_rgb(encoding: str, padding: int) -> None:
    row = WIDTH * CHANNELS[encoding]
    rows = np.zeros((HEIGHT, row + padding), dtype=np.uint8)
    rows[:, :row] = np.ascontiguousarray(encoded(encoding)).reshape(HEIGHT, row)
    got = rgb_of(encoding, HEIGHT, WIDTH, row + padding, rows.ravel())
    assert got.shape == RGB.shape and got.dtype == np.uint8
    wanted = np.repeat(RGB[:, :, :1], 3, axis=2) if encoding == "mono8" else RGB
    exact = CHANNELS[encoding] != 2 and not encoding.startswith("bayer")
    inner = np.s_[2:-2, 2:-2]  # interpolation has nothing to look at beyond the edge
    difference = np.abs(got.astype(int) - wanted)[inner]
    assert difference.max() <= (0 if exact else 4)


def test_compressed_pictures() -> None:
    png = cv2.imencode(".png", RGB[:, :, ::-1])[1]
    np.testing.assert_array_equal(rgb_of_compressed("rgb8; png compressed bgr8", png), RGB)
    jpeg = cv2.imencode(".jpg", RGB[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
    assert np.abs(rgb_of_compressed("jpeg", jpeg).astype(int) - RGB).mean() < 4
    with pytest.raises(ObservationError, match=r"'16UC1; compressedDepth'; colour in jpeg or png"):
        rgb_of_compressed("16UC1; compressedDepth", png)
    for broken in (png[: len(png) // 8], np.zeros(0, dtype=np.uint8), np.arange(200, dtype=np.uint8)):
        with pytest.raises(ObservationError, match="cannot be decoded"):
            rgb_of_compressed("png", broken)


def test_what_does_not_fit_together_is_refused() -> None:
    data = np.zeros(HEIGHT * WIDTH * 3, dtype=np.uint8)
    with pytest.raises(ObservationError, match="'32FC1' is not known; allowed are rgb8"):
        rgb_of("32FC1", HEIGHT, WIDTH, WIDTH * 4, data)
    with pytest.raises(ObservationError, match=r"16 rows of 72 bytes .* 1151 bytes came"):
        rgb_of("rgb8", HEIGHT, WIDTH, WIDTH * 3, data[:-1])
    with pytest.raises(ObservationError, match="even numbers of rows and columns"):
        rgb_of("bayer_rggb8", 15, WIDTH, WIDTH, data)
    rng = np.random.default_rng(0)
    encodings = [*CHANNELS, "rgb16", ""]
    for _ in range(3000):
        height, width, step = (int(v) for v in rng.integers(0, 40, size=3))
        size = int(rng.integers(0, 1600))
        try:
            picture = rgb_of(encodings[rng.integers(len(encodings))], height, width, step, data[:size])
            assert picture.shape == (height, width, 3)
        except ObservationError as error:
            assert str(error)
