"""A Gradio Space: segment an image with one model, or compare two, and look at the result class by class.

    python app.py --models MODEL [MODEL ...]        folders or Hub ids; on a Space set ALLSPARK_MODELS="user/a,user/b"

Visitors choose among these models only: loading one runs the code in its repository.
"""

import argparse
import html
import logging
import os
import sys
from pathlib import Path


# Before the imports, which read them: nothing about visitors or owner goes anywhere.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache
from rendering import blend, encode_overlay, figures_html, legend_html, percent, present_classes, shared_colors
from segmenter import MAX_IMAGE_PIXELS, ModelShelf, Result, VisitorError, parse_models, segment


logger = logging.getLogger("space")

HERE = Path(__file__).resolve().parent
TITLE = "Semantic segmentation"
NO_SECOND_MODEL = "None"
MAX_FILE_SIZE = "40mb"
# Sessions whose latest result is kept, at most 13 MB each, and for how long; files too.
MAX_SESSIONS = 100
KEEP_SECONDS = 3600
SYSTEM_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif")
EXPIRED = "<p>This result was deleted after an hour: please upload the image again.</p>"
EMPTY = (
    "<h2>Your result appears here</h2><p>Upload, drop or paste an image, or choose an example. Every pixel gets a "
    "class; the colors, their share of the image and the mask as a file follow.</p>"
)
# The pressed state changes at once; the server's answer then says the same.
CHOOSE_CLASS = """
element.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-label]");
    if (!button) return;
    const pressed = button.getAttribute("aria-pressed") === "true";
    element.querySelectorAll(".legend-row").forEach((row) => row.setAttribute("aria-pressed", "false"));
    if (!pressed && button.dataset.label) button.setAttribute("aria-pressed", "true");
    trigger("select", {label: pressed ? "" : button.dataset.label});
});
"""


def run_models(shelf: ModelShelf, path: str | None, first: str, second: str | None, previous: Result | None):
    """Event of a new image or model: the new result, and what to tell the visitor instead of or beside it."""
    if path is None:
        return None, notice(EMPTY, "empty")
    names = [first] if second in (None, NO_SECOND_MODEL) else [first, second]
    try:
        result = segment(shelf, path, names, previous)
    except VisitorError as error:
        gr.Warning(html.escape(str(error)))
        return None, notice(f"<p>{html.escape(str(error))}</p>", "problem")
    if result.warning:
        gr.Warning(html.escape(result.warning))
        return result, notice(f"<p>{html.escape(result.warning)}</p>", "problem")
    return result, gr.update(value="", visible=False)


def notice(text: str, kind: str):
    """Update of the notice."""
    return gr.update(value=f'<div class="notice {kind}" role="status">{text}</div>', visible=True)


def draw(result: Result | None, opacity: float, highlight: str | None, cache: str):
    """Everything that shows a result, without running a model.

    Returns:
        Updates of: results, figures, both sides (group, overlay, download), legend, highlight.
    """
    if result is None:
        return [gr.update(visible=False), "", *[gr.update()] * 6, "", None]
    labels = [made.labels for made in result.predictions]
    colors = shared_colors(labels, [made.colors for made in result.predictions])
    areas = [made.areas for made in result.predictions]
    if highlight not in dict(present_classes(labels, areas)):
        highlight = None
    sides = []
    for index in range(2):
        if index < len(result.predictions):
            sides += draw_side(result, index, colors[index], opacity, highlight, cache)
        else:
            sides += [gr.update(visible=False), None, None]
    legend = legend_html(labels, colors, areas, highlight)
    return [gr.update(visible=True), figures_html(figures_of(result)), *sides, legend, highlight]


def redraw(result: Result | None, opacity: float, highlight: str | None, cache: str):
    """Event of another opacity or highlight: `draw`, and the notice, which says so if the result has expired."""
    return [*draw(result, opacity, highlight, cache), gr.update() if result else notice(EXPIRED, "problem")]


def draw_side(result: Result, index: int, colors, opacity: float, highlight: str | None, cache: str):
    """Updates of one model's group, overlay and download."""
    made = result.predictions[index]
    chosen = None if highlight is None else (made.labels.index(highlight) if highlight in made.labels else -1)
    overlay = blend(result.photo, made.shown_mask, colors, opacity / 100, chosen)
    files = f"{result.stem[:80]}_{made.model_name}".replace("/", "_")
    largest = [f"{name} {percent(share)}" for name, (share,) in present_classes([made.labels], [made.areas])[:5]]
    letter = "AB"[index] if len(result.predictions) > 1 else ""
    # Written again with every drawing, so that the file in the cache is as young as the page says.
    mask = save_bytes_to_cache(made.mask_png, f"{files}_mask.png", cache)
    return [
        gr.update(visible=True),
        gr.update(
            value=save_bytes_to_cache(encode_overlay(overlay), f"{files}_overlay.jpg", cache),
            label=f"{letter} · {made.model_name}" if letter else made.model_name,
            alt_text=f"Segmentation by {made.model_name}: {', '.join(largest)}",
        ),
        gr.update(value=mask, label=f"Download mask {letter}".rstrip()),
    ]


def figures_of(result: Result) -> list[tuple[str, str]]:
    """Figures above the overlays: pairs of what it is, and its value."""
    several = len(result.predictions) > 1
    figures = [("Image", f"{result.size[0]} x {result.size[1]}")]
    if result.agreement is not None:
        figures.append(("Agreement", percent(result.agreement)))

    def add(what: str, values: list[str]):
        figures.append((f"{what}, A · B" if several else what, " · ".join(values)))

    add("Classes found", [str((made.areas > 0).sum()) for made in result.predictions])
    if any(made.confidence is not None for made in result.predictions):
        add("Mean confidence", ["none" if m.confidence is None else percent(m.confidence) for m in result.predictions])
    if any(made.model_size for made in result.predictions):
        sizes = [made.model_size or result.size for made in result.predictions]
        add("Read by the model at", [f"{width} x {height}" for width, height in sizes])
    return figures


def theme() -> gr.themes.Base:
    """System fonts only, so that nothing is loaded from elsewhere; colors of the page are neutral, unlike masks."""
    return gr.themes.Default(
        primary_hue="teal", secondary_hue="teal", neutral_hue="slate", font=SYSTEM_FONTS, font_mono=("ui-monospace",)
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        # The default, a shade lighter, is under the contrast of 4.5 that small text needs.
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
    )


def build(shelf: ModelShelf) -> gr.Blocks:
    """The page, with its events."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, KEEP_SECONDS)) as page:
        result = gr.State(None, time_to_live=KEEP_SECONDS)
        highlight = gr.State(None)
        gr.HTML(
            f'<header class="head"><h1>{TITLE}</h1><p>See what the model makes of your image, class by class'
            f"{', and compare two models' if len(shelf.names) > 1 else ''}.</p></header>"
        )
        with gr.Row(elem_classes="page"):
            with gr.Column(scale=4, min_width=300, elem_classes="inputs"):
                image, first, second = build_inputs(shelf)
            with gr.Column(scale=8, min_width=300, elem_classes="outputs"):
                told = gr.HTML(f'<div class="notice empty" role="status">{EMPTY}</div>', elem_id="notice")
                shown = build_results()
        opacity = shown.pop("opacity")
        outputs = [*shown.values(), highlight]

        def on_change(path, first, second, previous):
            return run_models(shelf, path, first, second, previous)

        def on_draw(result, opacity, highlight):
            return draw(result, opacity, highlight, image.GRADIO_CACHE)

        def on_opacity(result, opacity, highlight):
            return redraw(result, opacity, highlight, image.GRADIO_CACHE)

        def on_choose(result, opacity, event: gr.EventData):
            return redraw(result, opacity, event.label or None, image.GRADIO_CACHE)

        quiet = {"show_progress": "hidden", "api_visibility": "private", "trigger_mode": "always_last"}
        gr.on(
            [image.change, first.change, second.change],
            on_change,
            [image, first, second, result],
            [result, told],
            show_progress_on=[told, shown["overlay_a"], shown["overlay_b"]],
            concurrency_limit=1,
            api_visibility="private",
            trigger_mode="always_last",
        ).then(on_draw, [result, opacity, highlight], outputs, show_progress="hidden", api_visibility="private")
        opacity.change(on_opacity, [result, opacity, highlight], [*outputs, told], concurrency_limit=2, **quiet)
        shown["legend"].select(on_choose, [result, opacity], [*outputs, told], concurrency_limit=2, **quiet)
    return page


def build_inputs(shelf: ModelShelf):
    """Image, both models and examples."""
    image = gr.Image(
        label="Image",
        image_mode=None,
        type="filepath",
        sources=["upload", "clipboard"],
        height=300,
        buttons=[],
        elem_id="image",
        alt_text="The uploaded image",
    )
    # The path of the file as it came, before Gradio reads it: whatever it is, `read_image` has a sentence. (Not a
    # subclass: Gradio writes an app.pyi beside the file of one.)
    image.preprocess = lambda payload: None if payload is None else payload.path
    several = len(shelf.names) > 1
    first = gr.Dropdown(shelf.names, value=shelf.names[0], label="Model", visible=several, elem_id="first")
    second = gr.Dropdown(
        [NO_SECOND_MODEL, *shelf.names],
        value=NO_SECOND_MODEL,
        label="Compare with",
        visible=several,
        elem_id="second",
    )
    examples = sorted(str(path) for path in (HERE / "examples").glob("*") if path.suffix.lower() in (".jpg", ".png"))
    if examples:
        gr.Examples(examples, image, cache_examples=False, api_visibility="private", elem_id="examples")
    gr.HTML(
        f'<p class="small">JPEG, PNG, WebP or TIFF, up to {MAX_IMAGE_PIXELS // 1_000_000} megapixels. Images are '
        "deleted from the server after about an hour.</p>"
    )
    return image, first, second


def build_results() -> dict[str, gr.blocks.Block]:
    """Components of a result, in the order of `draw`, and the opacity."""
    with gr.Column(visible=False, elem_id="results") as results:
        figures = gr.HTML()
        opacity = gr.Slider(0, 100, 50, step=5, label="Opacity of the colors, %", elem_id="opacity")
        sides = {}
        with gr.Row(elem_classes="sides"):
            for letter in "ab":
                with gr.Column(min_width=300, visible=letter == "a") as group:
                    overlay = gr.Image(
                        interactive=False,
                        format="jpeg",
                        buttons=["fullscreen", "download"],
                        elem_id=f"overlay_{letter}",
                        elem_classes="overlay",
                    )
                    download = gr.DownloadButton("Download mask", size="md", elem_id=f"download_{letter}")
                sides |= {f"group_{letter}": group, f"overlay_{letter}": overlay, f"download_{letter}": download}
        legend = gr.HTML(js_on_load=CHOOSE_CLASS, elem_id="legend")
    return {"results": results, "figures": figures, "opacity": opacity, **sides, "legend": legend}


def main() -> None:
    """Read the models' ids and serve the page."""
    parser = argparse.ArgumentParser(description="Segment images in the browser, with one model or two side by side.")
    parser.add_argument(
        "--models",
        nargs="+",
        metavar="MODEL",
        help="folders or Hub ids (user/name, user/name@revision), whose code is run; default: the environment "
        "variable ALLSPARK_MODELS, separated by commas",
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logger.setLevel(logging.INFO)
    try:
        ids = parse_models(arguments.models, os.environ.get("ALLSPARK_MODELS"))
    except ValueError as error:
        sys.exit(f"ValueError: {error}")
    build(ModelShelf(ids)).queue(max_size=30).launch(
        theme=theme(),
        css_paths=HERE / "style.css",
        max_file_size=MAX_FILE_SIZE,
        state_session_capacity=MAX_SESSIONS,
        footer_links=["gradio", "settings"],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
    )


if __name__ == "__main__":
    main()
