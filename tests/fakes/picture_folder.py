"""A folder of pictures as a person might have it: those inside scikit-image and matplotlib, and drawn portraits.

`python -m tests.fakes.picture_folder FOLDER --portraits 200` writes one.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from trainer.data.captions import caption
from trainer.data.drawing import draw
from trainer.data.portraits import portrait_of

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".gif")
NARROWEST, WIDEST = 0.5, 2.0


def library_pictures() -> list[Path]:
    """Pictures inside the packages scikit-image and matplotlib; some are tiny, one cannot be opened."""
    import matplotlib
    import skimage

    roots = (Path(skimage.__file__).parent / "data", Path(matplotlib.get_data_path()) / "sample_data")
    return sorted(path for root in roots for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)


def write_photographs(folder: Path, portraits: int, libraries: bool = True, seed: int = 0, side: int = 384) -> Path:
    """Pictures with their captions: the libraries' in a folder of its own, portraits of any shape as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for picture in library_pictures() if libraries else ():
        target = folder / "libraries" / picture.name
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(picture, target)
        target.with_suffix(".txt").write_text(f"a picture that is called {picture.stem.replace('_', ' ')}\n")
    shapes = np.random.default_rng(seed)
    for number in range(portraits):
        ratio = float(np.exp(shapes.uniform(np.log(NARROWEST), np.log(WIDEST))))
        write_portrait(folder / f"portrait{number:04d}.png", f"{seed}-{number}", ratio, side)
    return folder


def write_portrait(path: Path, id: str, ratio: float, side: int) -> None:
    """One drawn portrait of about side x side pixels, width / height being `ratio`, and its caption."""
    portrait = portrait_of(id)
    height, width = round(side / ratio**0.5), round(side * ratio**0.5)
    Image.fromarray(draw(portrait, height, width).pixels_HWC).save(path)
    path.with_suffix(".txt").write_text(caption(portrait) + "\n", encoding="utf-8")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--portraits", type=int, default=200)
    given = parser.parse_args()
    write_photographs(given.folder, given.portraits)


if __name__ == "__main__":
    main()
