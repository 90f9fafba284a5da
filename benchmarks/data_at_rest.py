"""Compare storage formats of demonstrations.

The same images are stored in our format (one gzipped chunk per frame), as plain HDF5, as HDF5 with larger chunks, and
as a memory map. The benchmark measures the size, the seconds to read all images, and the randomly sampled windows per
second. The page cache is warm. Everything runs in one process; the formats alternate, and the figures are medians. It
takes a few minutes and does not resume.

Example:
    python -m benchmarks.data_at_rest FILE_demo.hdf5 --out mine.json
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from benchmarks.output import add_out, command, make_parser
from benchmarks.result_files import write_measurement
from m2distill_policy.demonstrations import DemonstrationFile

#: Number of frames in a large chunk.
_LARGE = 16
_HISTORY = 10


def layouts(folder: Path, frames: NDArray[np.uint8]) -> dict[str, Path]:
    """Write ``frames`` (N, H, W, 3) in every format; return name of the format -> file."""
    one, many = (1, *frames.shape[1:]), (_LARGE, *frames.shape[1:])
    variants: dict[str, dict[str, Any]] = {
        "hdf5": {},
        "hdf5_gzip_frame": {"chunks": one, "compression": "gzip", "compression_opts": 1},
        "hdf5_gzip_16_frames": {"chunks": many, "compression": "gzip", "compression_opts": 1},
        "hdf5_lzf_frame": {"chunks": one, "compression": "lzf"},
    }
    files = {}
    for name, options in variants.items():
        files[name] = folder / f"{name}.hdf5"
        with h5py.File(files[name], "w") as file:
            file.create_dataset("frames", data=frames, **options)
    files["memory_map"] = folder / "frames.npy"
    np.save(files["memory_map"], frames)
    return files


def opened(name: str, path: Path) -> Any:
    """Open a file of :func:`layouts`; return an object that can be indexed by frames."""
    return np.load(path, mmap_mode="r") if name == "memory_map" else h5py.File(path, "r")["frames"]


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that ``work`` takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def sample(frames: Any, starts: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
    """Copy the windows that begin at ``starts``."""
    return [np.array(frames[start : start + _HISTORY]) for start in starts]


def main() -> None:
    """Measure, and write the result."""
    parser = make_parser(__doc__)
    parser.add_argument("file", type=Path, help="a demonstration file")
    parser.add_argument("--episodes", type=int, default=10, help="episodes to store (default: %(default)s)")
    parser.add_argument("--windows", type=int, default=64, help="windows of ten frames a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    add_out(parser)
    args = parser.parse_args()
    source = DemonstrationFile(args.file)
    frames = np.concatenate([source.episode(i).images["agentview_rgb"] for i in range(min(args.episodes, len(source)))])
    rng = np.random.default_rng(0)
    starts = rng.integers(0, len(frames) - _HISTORY, size=args.windows)
    with tempfile.TemporaryDirectory() as name:
        files = layouts(Path(name), frames)
        whole: dict[str, list[float]] = {n: [] for n in files}
        drawn: dict[str, list[float]] = {n: [] for n in files}
        for number in range(args.rounds):
            print(f"round {number + 1} of {args.rounds}", file=sys.stderr)
            for layout, path in files.items():
                data = opened(layout, path)
                whole[layout].append(timed(partial(np.array, data)))
                drawn[layout].append(timed(partial(sample, data, starts)))
        memory = timed(partial(sample, frames, starts))
        figures = {
            "frames": list(frames.shape),
            "layouts": {
                n: {
                    "mib": round(path.stat().st_size / 2**20, 1),
                    "seconds_to_read_all": round(float(np.median(whole[n])), 4),
                    "windows_a_second": round(args.windows / float(np.median(drawn[n]))),
                }
                for n, path in files.items()
            },
            "in_memory": {"windows_a_second": round(args.windows / memory)},
        }
    write_measurement(
        "data_at_rest",
        {"data_sha256": source.sha256(), "episodes": args.episodes, "windows": args.windows, "rounds": args.rounds},
        figures,
        args.out,
    )


if __name__ == "__main__":
    command(main)
