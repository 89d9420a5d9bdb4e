"""A page to try a CorrMatch model: its classes over a picture, and its correlation map of any place in it.

The model is named by the variable MODEL_ID, an id on the Hub or a folder. Nothing but its repository is needed, and
the variable TRUST_REMOTE_CODE to say that the code in it may run.
"""

import html
import os
from pathlib import Path

import gradio as gr
import numpy as np
import torch
from analysis import HEAT, correlation_map, enlargement, heat_map, read_picture, segment, shares
from huggingface_hub import snapshot_download
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

HINT = "<b>Click a place in the picture below</b> to see which others the model finds like it."
NO_HEAD = (
    "This model was saved without its correlation head (correlation_head: false in its config), "
    "so there are no correlation maps to show."
)
HEIGHT = "min(400px, 75vw)"  # of a picture on the page
CSS = f"""
#picture img {{ width: 100%; height: 100%; object-fit: contain; }}
#overlay {{ height: auto !important; }}  /* as high as its legend needs */
#overlay .image-container {{ height: {HEIGHT}; }}
#shares table, #shares tr, #shares td {{ border: none; }}
#shares td {{ padding: 2px 6px; overflow-wrap: anywhere; }}
#shares td:last-child {{ text-align: right; white-space: nowrap; }}
#shares .bar {{ height: 1em; min-width: 2px; border-radius: 3px; }}
#text .bar {{ display: inline-block; width: 6em; height: 0.8em;
    background: linear-gradient(90deg, {", ".join(f"rgb{color}" for color in HEAT)}); }}
"""


def load_model(model_id: str):
    """Model and image processor of a Hub id or a folder. Raises ValueError, with a sentence for the page."""
    if not model_id:
        raise ValueError(
            "No model is named: set the variable MODEL_ID (in a Space: Settings, Variables and secrets) "
            "to the id of a model on the Hub, such as user/model."
        )
    trust = os.environ.get("TRUST_REMOTE_CODE", "").strip().lower() in ("1", "true", "yes")
    try:
        model = AutoModelForSemanticSegmentation.from_pretrained(model_id, trust_remote_code=trust)
        processor = AutoImageProcessor.from_pretrained(model_id, trust_remote_code=trust)
    except Exception as error:  # transformers, timm and the model's own code raise every kind
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if "trust_remote_code" in str(error):
            reason = (
                "it brings code of its own, which runs only where the variable TRUST_REMOTE_CODE is true: set it "
                "if you trust that repository."
            )
        raise ValueError(f"The model {model_id!r} named by MODEL_ID cannot be loaded: {reason}") from error
    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return model.eval().to(device), processor


def find_samples(model_id: str) -> list[str]:
    """The pictures samples/*.jpg of the model's repository, if it has any."""
    try:
        folder = Path(model_id)
        if not folder.is_dir():
            folder = Path(snapshot_download(model_id, allow_patterns="samples/*.jpg"))
        return sorted(str(path) for path in folder.glob("samples/*.jpg"))
    except Exception as error:  # the page is whole without them
        print(f"No sample pictures: {error}")
        return []


def class_names(id2label: dict[int, str]) -> list[str]:
    """Names by class id; where two classes are called the same, with their ids."""
    names = [id2label[i] for i in range(len(id2label))]
    return [f"{name} ({i})" if names.count(name) > 1 else name for i, name in enumerate(names)]


def class_colors(names: list[str], palette: np.ndarray) -> dict[str, str]:
    """A hex colour for each class, from the (K, 3) palette that all pictures of the model share."""
    return {name: "#" + bytes(color).hex() for name, color in zip(names, palette.tolist(), strict=True)}


def tint(name: str) -> float:
    """How strongly a class covers the photo: the background, which is black, would hide a dark one."""
    return 0.2 if name.lower() == "background" else 0.55


def share_table(share: dict[str, float], colors: dict[str, str]) -> str:
    """The shares as an HTML table: name, bar in the colour of the class, percent."""
    rows = [
        f"<tr><td>{html.escape(name)}</td><td style='width:40%'>"
        f"<div class='bar' style='width:{value:.1%};background:{colors[name]}'></div></td>"
        f"<td>{'&lt;0.1%' if value < 0.0005 else f'{value:.1%}'}</td></tr>"
        for name, value in share.items()
    ]
    return f"<table style='width:100%'>{''.join(rows)}</table>"


def build(model, processor, model_id: str, samples: list[str]) -> gr.Blocks:
    """The page."""
    names = class_names(model.config.id2label)
    palette = processor.class_palette(model.config.id2label, getattr(model.config, "label_colors", None))
    colors = class_colors(names, palette)
    has_head = getattr(model.config, "correlation_head", False)
    hint = HINT if has_head else NO_HEAD

    def show(file):
        """A new picture, or none -> what the session remembers, overlay, shares, picture to click, texts."""
        nothing = None, None, "", None
        if not file or not file.get("path"):
            return *nothing, "", hint
        try:
            photo, note = read_picture(file["path"], processor)
        except ValueError as error:
            return *nothing, f"**{error}**", hint
        prediction = segment(model, processor, photo)
        share = shares(prediction.labels, names)
        masks = [(np.float32(tint(name)) * (prediction.labels == names.index(name)), name) for name in share]
        shown = ImageOps.scale(photo, enlargement(prediction.photo))
        return prediction, (photo, masks), share_table(share, colors), shown, note, hint

    def show_correlation(prediction, event: gr.SelectData):
        """A click -> the correlation map of its place, and what it shows."""
        if prediction is None:
            return None, hint
        times, (height, width) = enlargement(prediction.photo), prediction.labels.shape
        x, y = min(int(event.index[0]), times * width - 1), min(int(event.index[1]), times * height - 1)
        name = html.escape(names[prediction.labels[y // times, x // times]])
        correlation = correlation_map(
            prediction.query,
            prediction.key,
            (x, y),
            (times * height, times * width),
            model.config.correlation_scale,
        )
        shown = ImageOps.scale(Image.fromarray(prediction.photo), times)
        text = f"The ring is on <b>{name}</b>. The rest is like it: little <span class='bar'></span> much."
        return heat_map(shown, correlation, (x, y)), text

    with gr.Blocks(title="Semantic segmentation", delete_cache=(3600, 3600)) as page:
        session = gr.State(time_to_live=3600)  # each visitor's own picture, forgotten after an hour
        gr.Markdown(f"# Semantic segmentation\nwith the CorrMatch model `{model_id}`")
        with gr.Row():
            with gr.Column():
                picture = gr.Image(
                    label="Picture", sources=["upload", "clipboard"], height=HEIGHT, elem_id="picture"
                )
                note = gr.Markdown(elem_id="note")
                if samples:
                    gr.Examples(samples, picture, label="Sample pictures", elem_id="samples")
            with gr.Column():
                overlay = gr.AnnotatedImage(
                    label="Classes",
                    color_map=colors,
                    buttons=[],  # in full screen, gradio 6.31 puts the colours below the photo
                    height=HEIGHT,
                    elem_id="overlay",
                )
        with gr.Row():
            with gr.Column():
                gr.Markdown("### Share of the picture")
                share = gr.HTML(elem_id="shares")
            with gr.Column():
                gr.Markdown("### Correlation map")
                text = gr.HTML(hint, elem_id="text")
                explorer = gr.Image(
                    show_label=False,
                    interactive=False,
                    visible=has_head,
                    buttons=["fullscreen"],
                    format="jpeg",
                    height=HEIGHT,
                    elem_id="correlation",
                )
        picture.change(
            show,
            picture,
            [session, overlay, share, explorer, note, text],
            preprocess=False,  # gradio would decode the file before its size is known
            trigger_mode="always_last",
            concurrency_limit=1,
        )
        explorer.select(
            show_correlation, session, [explorer, text], trigger_mode="always_last", show_progress="hidden"
        )
    return page.queue(max_size=20, default_concurrency_limit=4)


def explain(sentence: str) -> gr.Blocks:
    """A page that only says why there is no demonstration."""
    with gr.Blocks(title="Semantic segmentation") as page:
        gr.HTML(f"<h1>Semantic segmentation</h1><p id='problem'>{html.escape(sentence)}</p>")
    return page


def main() -> None:
    model_id = os.environ.get("MODEL_ID", "")
    try:
        model, processor = load_model(model_id)
    except ValueError as error:
        print(f"error: {error}")
        page = explain(str(error))
    else:
        page = build(model, processor, model_id, find_samples(model_id))
    page.launch(css=CSS, max_file_size="30mb", state_session_capacity=100)


if __name__ == "__main__":
    main()
