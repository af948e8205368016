"""PNGs side by side, small enough for a page: python docs/pictures.py OUT.png PICTURE.png ...

docs/pictures.md has the commands that made those of the README.
"""

import argparse

from PIL import Image

GAP, COLOURS = 24, 64


def main() -> None:
    parser = argparse.ArgumentParser(description="Put PNGs side by side.")
    parser.add_argument("out")
    parser.add_argument("pictures", nargs="+")
    parser.add_argument("--width", type=int, default=760, help="pixels of the whole")
    args = parser.parse_args()
    pictures = [Image.open(file).convert("RGB") for file in args.pictures]
    wide = sum(p.width for p in pictures) + GAP * (len(pictures) - 1)
    page = Image.new("RGB", (wide, max(p.height for p in pictures)), "white")
    left = 0
    for picture in pictures:
        page.paste(picture, (left, 0))
        left += picture.width + GAP
    size = (args.width, round(page.height * args.width / wide))
    way = Image.NEAREST if args.width > wide else Image.LANCZOS  # enlarged pixels stay sharp
    page.resize(size, way).quantize(COLOURS).save(args.out, optimize=True)


if __name__ == "__main__":
    main()
