"""Draw docs/images/synthetic.png: photo, ground truth, and predictions without and with unlabelled photos.

    corrmatch train
    corrmatch train --method supervised --output_dir outputs/supervised
    python docs/make_picture.py

The rows are typical, not the best: the validation images whose gain in pixel accuracy is closest to the mean gain.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from corrmatch_hf import CorrMatchForSegmentation, CorrMatchImageProcessor, load_semi_dataset
from corrmatch_hf.evaluation import predict_probabilities
from corrmatch_hf.pictures import class_palette
from corrmatch_hf.pictures.legend import text_font

ROWS, CELL, GAP, TITLE = 3, 176, 6, 30


def main() -> None:
    data = load_semi_dataset("synthetic")
    images = [row["image"].convert("RGB") for row in data.validation]
    truth = np.stack([np.asarray(row["label"]) for row in data.validation])  # (N, H, W)
    supervised, ours = predict("outputs/supervised", images), predict("outputs/synthetic", images)
    gain = ((ours == truth).astype(float) - (supervised == truth)).mean((1, 2))
    rows = np.abs(gain - gain.mean()).argsort()[:ROWS]

    palette = class_palette(data.id2label)
    columns = {
        "photo": [np.asarray(images[i]) for i in rows],
        "ground truth": palette[truth[rows]],
        "12 labelled photos": palette[supervised[rows]],
        "+ 400 unlabelled": palette[ours[rows]],
    }
    size = (len(columns) * (CELL + GAP) - GAP, TITLE + ROWS * (CELL + GAP) - GAP)
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for i, (title, cells) in enumerate(columns.items()):
        left = i * (CELL + GAP)
        draw.text((left + CELL / 2, TITLE / 2), title, font=text_font(16), fill="black", anchor="mm")
        for j, cell in enumerate(cells):
            resample = Image.Resampling.NEAREST if i else Image.Resampling.LANCZOS
            picture = Image.fromarray(cell).resize((CELL, CELL), resample)
            canvas.paste(picture, (left, TITLE + j * (CELL + GAP)))
    output = Path(__file__).parent / "images" / "synthetic.png"
    output.parent.mkdir(exist_ok=True)
    canvas.quantize(128).save(output, optimize=True)
    print(
        f"written to {output}, {output.stat().st_size // 1000} kB; mean gain {100 * gain.mean():.1f} points"
    )


def predict(folder: str, images: list[Image.Image]) -> np.ndarray:
    """Class ids (N, H, W) of images of one size by the model in `folder`."""
    model = CorrMatchForSegmentation.from_pretrained(folder).eval()
    processor = CorrMatchImageProcessor.from_pretrained(folder)
    pixels = [
        processor(images=image, return_tensors="pt")["pixel_values"] for image in images
    ]  # (1, 3, H, W)
    return np.concatenate([predict_probabilities(model, each).argmax(1).numpy() for each in pixels])


if __name__ == "__main__":
    main()
