"""Large images: tiles, their blending, and files that are read and written by windows."""

import itertools
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from picture_files import bands_tiff, deep_png
from PIL import Image
from served_model import as_bytes, balanced_model, picture

from allspark_hf.cli.predict import main
from allspark_hf.data.pixels import open_image
from allspark_hf.inference.large import find_large, predict_large
from allspark_hf.inference.loading import make_image_processor
from allspark_hf.inference.prediction import palette_of, predict_mask
from allspark_hf.inference.tiles import blended_rows, tile_spans, tile_weights


rasterio = pytest.importorskip("rasterio", reason="large images are read by rasterio")
PROCESSOR = make_image_processor()


@pytest.fixture(scope="module")
def model():
    return balanced_model(4)


CONFIG = {"num_labels": 3, "smallest_side": 1, "crop_height_width": (32, 24), "palette": None}


class OnePixel(torch.nn.Module):
    """Sees each pixel by itself, so that tiles can change nothing: much red, little green, or blue."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, **config):
        super().__init__()
        self.config = SimpleNamespace(**{**CONFIG, **config})
        self.eval()

    def forward(self, pixel_values):
        return SimpleNamespace(logits=pixel_values * torch.tensor([1, -1, 0.5])[:, None, None])


def test_tiles_cover_each_side_evenly():
    assert tile_spans(100, 100, 25) == [(0, 100)] == tile_spans(100, 400, 25)
    assert tile_spans(100, 40, 10) == [(0, 40), (30, 70), (60, 100)]
    assert tile_spans(101, 40, 10) == [(0, 40), (20, 60), (41, 81), (61, 101)]
    assert tile_spans(41, 40, 20) == [(0, 40), (1, 41)]
    for length in range(41, 300):
        spans = tile_spans(length, 40, 13)
        assert spans[0][0] == 0 and spans[-1][1] == length and {stop - start for start, stop in spans} == {40}
        assert all(before[1] - after[0] >= 13 for before, after in itertools.pairwise(spans))


def test_weights_of_neighbors_add_up_to_one():
    first, last = tile_weights((0, 8), 12, 4), tile_weights((4, 12), 12, 4)
    expected = [1, 1, 1, 1, 0.9619398, 0.6913417, 0.3086583, 0.0380602]
    torch.testing.assert_close(first, torch.tensor(expected))
    torch.testing.assert_close(first[4:] + last[:4], torch.ones(4))
    assert tile_weights((0, 8), 8, 4).tolist() == [1] * 8 == tile_weights((4, 12), 16, 0).tolist()


@pytest.mark.parametrize("size", [(9, 8), (11, 20), (31, 17), (8, 30), (40, 3)])
def test_blending_is_the_weighted_mean(size):
    """Random probabilities for each tile, so that nothing but the right sums gives the right classes."""
    height, width = size
    tiles = {}

    def predict(rows, columns):
        torch.manual_seed(len(tiles))
        tiles[rows, columns] = torch.rand(5, rows[1] - rows[0], columns[1] - columns[0])
        return tiles[rows, columns].clone()

    strips = [(top, strip.copy()) for top, strip in blended_rows(predict, size, 8, 3)]
    total = torch.zeros(5, height, width)
    for (rows, columns), part in tiles.items():
        weights = tile_weights(rows, height, 3)[:, None] * tile_weights(columns, width, 3)
        total[:, slice(*rows), slice(*columns)] += part * weights
    assert len(tiles) == len(tile_spans(height, 8, 3)) * len(tile_spans(width, 8, 3))
    assert [top for top, _ in strips] == [start for start, _ in tile_spans(height, 8, 3)]
    np.testing.assert_array_equal(np.concatenate([strip for _, strip in strips]), total.argmax(0).numpy())


def test_a_seam_is_a_slope():
    """Two tiles that contradict each other: what is surer wins further into the overlap."""

    def predict(rows, columns):
        share = 0.9 if columns[0] == 0 else 0.2
        return torch.tensor([share, 1 - share])[:, None, None].repeat(1, 4, columns[1] - columns[0])

    ((_, strip),) = blended_rows(predict, (4, 24), 16, 8)
    # 0.9 w + 0.2 (1 - w) > 0.5 where w > 3/7: to the left of the overlap's middle, 12, and one pixel further.
    weights = tile_weights((0, 16), 24, 8)[8:]
    assert strip[0].tolist() == [0] * (8 + int((weights > 3 / 7).sum())) + [1] * (8 + int((weights <= 3 / 7).sum()))
    assert (weights > 3 / 7).sum() == 4


def opacity(values: np.ndarray, sharp: bool) -> np.ndarray:
    """The values with a fourth band: slanting, or nothing but 0 and the largest value."""
    largest = np.iinfo(values.dtype).max
    band = np.broadcast_to(np.linspace(0, largest, values.shape[1]), values.shape[:2])
    return np.dstack([values, largest * (band > 99) if sharp else band]).astype(values.dtype)


def stored(mode: str, form: str = "TIFF", **options) -> bytes:
    return as_bytes(picture(size=(70, 90)).convert(mode), form, **options)


COLORS = np.asarray(picture(size=(70, 90)))
DEEP = COLORS.astype(np.uint16) * 150
FILES = {
    "RGB": lambda: stored("RGB"),
    "compressed": lambda: stored("RGB", compression="tiff_lzw"),
    "JPEG in TIFF": lambda: stored("YCbCr", compression="jpeg"),
    "gray": lambda: stored("L"),
    "palette": lambda: stored("P"),
    "opacity": lambda: bands_tiff(opacity(COLORS, sharp=True), extra=(2,)),
    "no opacity": lambda: bands_tiff(opacity(COLORS, sharp=False), extra=(2,)),
    "near infrared": lambda: bands_tiff(opacity(COLORS, sharp=True), extra=(0,)),
    "PNG": lambda: as_bytes(Image.fromarray(opacity(COLORS, sharp=False))),
    "WebP": lambda: as_bytes(Image.fromarray(opacity(COLORS, sharp=False)), "WEBP", lossless=True, exact=True),
    "16 bits, gray": lambda: bands_tiff(DEEP[..., :1], rgb=False),
    "16 bits, big endian": lambda: bands_tiff(DEEP, order=">"),
    "16 bits, opacity": lambda: bands_tiff(opacity(DEEP, sharp=True), extra=(2,)),
    "16 bits, PNG": lambda: deep_png(opacity(DEEP, sharp=False)),
    "16 bits, gray, PNG": lambda: deep_png(opacity(DEEP, sharp=False)[..., 2:]),
}


@pytest.mark.parametrize("name", FILES)
def test_files_are_read_as_images_are(tmp_path, model, name):
    """A tile that is the whole image gives the mask of `predict_mask`; also where tiles cut it and see one pixel."""
    file, target = tmp_path / "image", tmp_path / "new" / "mask.tif"
    file.write_bytes(FILES[name]())
    model.config.image_range = [500, 30000] if "16" in name else None
    local = OnePixel(image_range=model.config.image_range)
    for network, tile_size in ((model, 90), (local, 32), (local, 17)):
        counts = predict_large(network, PROCESSOR, file, target, tile_size=tile_size, progress=False)
        with open_image(file) as opened, Image.open(target) as mask:
            expected = predict_mask(network, PROCESSOR, opened)
            assert mask.mode == "P" and mask.getpalette()[:9] == palette_of(network.config)[:3].ravel().tolist()
            np.testing.assert_array_equal(np.asarray(mask), expected)
        assert counts.tolist() == np.bincount(expected.ravel(), minlength=network.config.num_labels).tolist()
        assert len(np.unique(expected)) > 1
    assert [path.name for path in target.parent.iterdir()] == ["mask.tif"]


def write_raster(path, values, **profile):
    profile = {"driver": "GTiff", "count": len(values), "dtype": values.dtype} | profile
    with rasterio.open(path, "w", height=values.shape[1], width=values.shape[2], **profile) as raster:
        raster.write(values)
    return path


def test_place_on_earth_is_kept(tmp_path):
    values = np.random.default_rng(0).integers(256, size=(3, 60, 50), dtype=np.uint8)
    place = {"crs": "EPSG:25832", "transform": rasterio.Affine(0.5, 0, 440720, 0, -0.5, 5751320)}
    source = write_raster(tmp_path / "map.tif", values, photometric="RGB", nodata=0, **place)
    predict_large(OnePixel(), PROCESSOR, source, tmp_path / "mask.tif", progress=False)
    with rasterio.open(tmp_path / "mask.tif") as mask:
        assert (mask.crs, mask.transform) == (place["crs"], place["transform"])
        assert mask.block_shapes == [(512, 512)] and mask.compression.name == "deflate" and mask.dtypes == ("uint8",)
        assert mask.nodata is None
    points = [rasterio.control.GroundControlPoint(row, row, 9 + row, 50 - row) for row in (0, 10, 40)]
    with rasterio.open(source, "w", driver="GTiff", count=3, dtype="uint8", height=60, width=50) as raster:
        raster.gcps = (points, rasterio.CRS.from_epsg(4326))
        raster.write(values)
    predict_large(OnePixel(), PROCESSOR, source, tmp_path / "mask.tif", progress=False)
    with rasterio.open(tmp_path / "mask.tif") as mask:
        assert [(point.row, point.x, point.y) for point in mask.gcps[0]] == [(0, 9, 50), (10, 19, 40), (40, 49, 10)]


def bad_file(path, kind: str):
    if kind.startswith("cut"):
        content = as_bytes(picture(), kind[4:])
        path.write_bytes(content[: len(content) // 2])
        return path
    values = np.zeros((5, 40, 40), dtype=np.uint8)
    if kind == "pages":
        picture().save(path, save_all=True, append_images=[picture()])
    elif kind.startswith("turned"):
        exif = Image.Exif()
        exif[274] = 6
        picture().save(path, kind[7:] or "TIFF", exif=exif)
    elif kind in ("CMYK", "1"):
        picture().convert(kind).save(path)
    elif kind == "white is 0":
        picture().convert("L").save(path, tiffinfo={262: 0})
    else:
        bands, dtype = {"bands": (5, "uint8"), "float": (3, "float32"), "signed": (1, "int16")}[kind]
        write_raster(path, values[:bands].astype(dtype), photometric="RGB" if bands == 3 else "MINISBLACK")
    return path


@pytest.mark.parametrize(
    "kind, message",
    [
        ("pages", "has 2 pages"),
        *((f"turned{form}", r"EXIF orientation 6\), .*save it upright") for form in ("", " JPEG", " PNG", " WEBP")),
        ("CMYK", r"4 bands \(red, green, blue, alpha\) of CMYK, uint8, but gray"),
        ("1", r"1 bands \(palette\) of 1 bits, uint8"),
        ("white is 0", "white as 0"),
        ("bands", r"5 bands \(gray, undefined.*gdal_translate|a file of a kind that Pillow does not know"),
        ("float", r"of float32, but|a file of a kind that Pillow does not know"),
        ("signed", r"of int16, but"),
        ("cut PNG", "image.tif cannot be read: "),
        ("cut JPEG", "image.tif cannot be read: "),
        ("cut TIFF", "image.tif cannot be read: |not recognized"),
    ],
)
def test_bad_files(tmp_path, kind, message):
    file = bad_file(tmp_path / "image.tif", kind)
    with pytest.raises((ValueError, OSError), match=message) as caught:
        predict_large(OnePixel(), PROCESSOR, file, tmp_path / "mask.tif", 90, progress=False)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["image.tif"]


def test_bad_arguments(tmp_path, model, monkeypatch):
    file, target = tmp_path / "image.tif", tmp_path / "mask.tif"
    picture().save(file)

    def refuses(message, network=model, processor=PROCESSOR, source=file, path=target, **given):
        with pytest.raises((ValueError, OSError), match=message):
            predict_large(network, processor, source, path, progress=False, **given)

    refuses("overlap is 33, but 0 to 32", tile_size=64, overlap=33)
    refuses("tile_size is 20, but the model needs 32", OnePixel(smallest_side=32), tile_size=20)
    refuses(r"71x50 pixels, but the model needs 60 a side", OnePixel(smallest_side=60), tile_size=64)
    refuses(r"scales every image to \{'max_height': 96.*--image_long_side", processor=make_image_processor(96))
    refuses("is the image itself", path=file)
    refuses("absent.tif", source=tmp_path / "absent.tif")
    refuses(r"model\.eval\(\)", OnePixel().train())
    target.write_text("before")
    broken = OnePixel()
    monkeypatch.setattr(broken, "forward", lambda pixel_values: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        predict_large(broken, PROCESSOR, file, target, progress=False)
    assert target.read_text() == "before" and not list(tmp_path.glob("*.part"))
    monkeypatch.setitem(sys.modules, "rasterio", None)
    refuses(r'needs rasterio: pip install "allspark-hf\[large\]"')


@pytest.mark.parametrize("values", [[7, 0, 255], [300, 2, 65535]])
def test_colors_and_values_of_ones_own(tmp_path, values):
    palette = np.array([[1, 2, 3], [40, 50, 60], [7, 8, 9]], dtype=np.uint8)
    file = tmp_path / "image.tif"
    picture(size=(70, 90)).save(file)
    classes = predict_mask(OnePixel(), PROCESSOR, picture(size=(70, 90)))
    predict_large(
        OnePixel(), PROCESSOR, file, tmp_path / "mask.tif", palette=palette, mask_values=values, progress=False
    )
    with Image.open(tmp_path / "mask.tif") as mask:
        np.testing.assert_array_equal(np.asarray(mask), np.array(values)[classes])
        if max(values) < 256:
            colors = np.asarray(mask.convert("RGB"))
            np.testing.assert_array_equal(colors, palette[classes])


def test_large_by_the_header(tmp_path, monkeypatch):
    files = [tmp_path / name for name in ("a.png", "b.png", "text.png", "absent.png")]
    picture(size=(50, 71)).save(files[0])
    picture(size=(50, 70)).save(files[1])
    files[2].write_text("no image")
    for limit, large in ((50 * 71, []), (50 * 71 - 1, [0]), (50 * 71 // 3, [0, 1]), (None, [])):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert find_large(files, PROCESSOR) == large
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    assert find_large(files, make_image_processor(96)) == []


def run(monkeypatch, capsys, *options):
    monkeypatch.setattr(sys, "argv", ["allspark predict", *map(str, options)])
    return main(), capsys.readouterr()


def test_predict_command(tmp_path, model, monkeypatch, capsys):
    """One of three images is large by the limit; areas, resume, a bad one, and tiles for all."""
    model.config.image_range, model.config.mask_values = None, [0, 50, 100, 255]
    model.save_pretrained(tmp_path / "model")
    PROCESSOR.save_pretrained(tmp_path / "model")
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    sizes = {"a": (50, 71), "b": (70, 90), "c": (50, 71)}
    for index, (name, size) in enumerate(sizes.items()):
        picture(index, size).save(photos / f"{name}.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50 * 71)
    options = ["--model", tmp_path / "model", "--input", photos, "--output_dir", out, "--num_workers", 0]
    assert run(monkeypatch, capsys, *options)[0] == 0
    made = {path.name for path in out.iterdir()}
    assert made >= {"a_mask.png", "a_overlay.png", "b_mask.tif", "c_mask.png", "areas.csv", "legend.png"}
    assert not {name for name in made if name.startswith("b_")} - {"b_mask.tif"}
    with Image.open(out / "b_mask.tif") as mask:
        stored = np.asarray(mask)
    assert set(np.unique(stored)) <= {0, 50, 100, 255}
    rows = [line.split(",") for line in (out / "areas.csv").read_text().splitlines()]
    counted = [int(row[3]) for row in rows if row[0] == "b.png"]
    assert counted == [(stored == value).sum() for value in (0, 50, 100, 255)] and sum(counted) == 70 * 90
    predict_large(model, PROCESSOR, photos / "b.png", tmp_path / "b.tif", 64, mask_values=[0, 50, 100, 255])
    with Image.open(tmp_path / "b.tif") as mask:
        np.testing.assert_array_equal(stored, np.asarray(mask))

    (out / "b_mask.tif").unlink()
    areas = (out / "areas.csv").read_text()
    code, said = run(monkeypatch, capsys, *options, "--resume")
    assert code == 0 and "3 of 3 images predicted, 2 of them earlier" in said.out
    assert (out / "areas.csv").read_text() == areas
    assert "tile_size" in run(monkeypatch, capsys, *options, "--resume", "--tile_size", 90)[1].err
    (photos / "b.png").write_bytes((photos / "b.png").read_bytes()[:3000])
    code, said = run(monkeypatch, capsys, *options, "--overwrite")
    assert code == 1 and "b.png: not predicted" in said.err and not (out / "b_mask.tif").exists()
    assert run(monkeypatch, capsys, *options, "--overwrite", "--tile_size", 90)[0] == 1
    of_run = {"areas.csv", "legend.png", "predict.json"}
    assert {path.name for path in out.iterdir()} == {"a_mask.tif", "c_mask.tif", *of_run}
    with Image.open(out / "a_mask.tif") as mask:
        right = np.array([0, 50, 100, 255])[predict_mask(model, PROCESSOR, picture())]
        np.testing.assert_array_equal(np.asarray(mask), right)

    monkeypatch.setitem(sys.modules, "rasterio", None)
    code, said = run(monkeypatch, capsys, *options, "--overwrite")
    assert code == 2 and 'b.png is read in windows, which needs rasterio: pip install "allspark-hf[large]"' in said.err
    assert (out / "a_mask.tif").exists()
