import hashlib
import os

import numpy as np
import pytest
from PIL import Image

from atelier_tests.helpers.pictures import gradient, png_header_only, save_picture
from lora_atelier.core.errors import FormatError
from lora_atelier.dataset.buckets import BucketRule
from lora_atelier.dataset.images import (
    BadPicture,
    content_hash,
    fit_to_bucket,
    is_picture_name,
    load_image,
    read_header,
)


def exif_with_orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def top_left_corner(image: Image.Image) -> tuple[int, ...]:
    return tuple(image.resize((8, 8), Image.Resampling.BOX).getpixel((0, 0)))


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_to_the_size_and_to_the_pixels(tmp_path, orientation, ending):
    stored = Image.fromarray(gradient((96, 64)))
    path = tmp_path / f"picture.{ending}"
    options = {"quality": 95} if ending in ("jpg", "webp") else {}
    stored.save(path, exif=exif_with_orientation(orientation), **options)
    header = read_header(path)
    image = load_image(path)
    assert (header.width_px, header.height_px) == image.size == ((96, 64) if orientation < 5 else (64, 96))
    # Where the stored top left corner (dark in red and green) goes, by the EXIF table 1..8.
    expected_corner = {1: "tl", 2: "tr", 3: "br", 4: "bl", 5: "tl", 6: "tr", 7: "br", 8: "bl"}[orientation]
    pixels = np.asarray(image)
    corners = {
        "tl": pixels[:8, :8],
        "tr": pixels[:8, -8:],
        "bl": pixels[-8:, :8],
        "br": pixels[-8:, -8:],
    }
    darkest = min(corners, key=lambda name: int(corners[name][..., :2].astype(int).sum()))
    assert darkest == expected_corner


def test_a_png_header_is_read_without_decoding(tmp_path):
    path = tmp_path / "claims.png"
    path.write_bytes(png_header_only(640, 480))
    header = read_header(path)
    assert (header.width_px, header.height_px) == (640, 480)
    with pytest.raises(BadPicture, match="claims.png"):
        load_image(path)
    with pytest.raises(BadPicture):
        read_header(path, verify=True)


def test_damaged_exif_counts_as_upright(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(gradient((96, 64))).save(path, exif=b"Exif\0\0II*\0\xff\xff\xff\x7fbroken")
    assert load_image(path).size == (96, 64)
    assert read_header(path).width_px == 96


def test_transparency_lies_on_white(tmp_path):
    for mode, colour in [("RGBA", (10, 20, 30, 0)), ("LA", (10, 0))]:
        path = tmp_path / f"{mode}.png"
        Image.new(mode, (16, 16), colour).save(path)
        assert read_header(path).has_alpha
        assert load_image(path).getpixel((3, 3)) == (255, 255, 255)
    half = tmp_path / "half.png"
    Image.new("RGBA", (16, 16), (0, 0, 0, 128)).save(half)
    assert load_image(half).getpixel((0, 0)) == (127, 127, 127)


def test_palette_with_a_transparent_entry_lies_on_white(tmp_path):
    image = Image.new("P", (16, 16), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((5, 5), 0)
    path = tmp_path / "palette.png"
    image.save(path, transparency=1)
    loaded = load_image(path)
    assert loaded.getpixel((0, 0)) == (255, 255, 255)
    assert loaded.getpixel((5, 5)) == (255, 0, 0)
    image.save(tmp_path / "opaque.png")
    assert load_image(tmp_path / "opaque.png").getpixel((0, 0)) == (0, 0, 255)


def test_16_bit_grey_keeps_its_range(tmp_path):
    values = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    for name in ("deep.png", "deep.tiff"):
        Image.fromarray(values).save(tmp_path / name)
        pixels = np.asarray(load_image(tmp_path / name))
        assert pixels.shape == (8, 8, 3)
        assert np.array_equal(pixels[..., 0], np.rint(values / 257.0).astype(np.uint8))


def test_floating_point_tiff_is_read_as_0_to_1_or_0_to_255(tmp_path):
    for name, top in (("unit.tiff", 1.0), ("bytes.tiff", 255.0)):
        values = np.linspace(0.0, top, 64, dtype=np.float32).reshape(8, 8)
        Image.fromarray(values).save(tmp_path / name)
        pixels = np.asarray(load_image(tmp_path / name))
        assert pixels[0, 0, 0] == 0
        assert pixels[-1, -1, 0] == 255
    broken = np.full((8, 8), np.nan, dtype=np.float32)
    Image.fromarray(broken).save(tmp_path / "nan.tiff")
    assert np.asarray(load_image(tmp_path / "nan.tiff")).max() == 0


def test_cmyk_grey_and_black_and_white_become_rgb(tmp_path):
    Image.new("CMYK", (16, 16), (0, 0, 0, 0)).save(tmp_path / "cmyk.jpg", quality=95)
    assert min(load_image(tmp_path / "cmyk.jpg").getpixel((8, 8))) > 250
    Image.new("L", (16, 16), 77).save(tmp_path / "grey.png")
    assert load_image(tmp_path / "grey.png").getpixel((0, 0)) == (77, 77, 77)
    Image.new("1", (16, 16), 1).save(tmp_path / "bits.png")
    assert load_image(tmp_path / "bits.png").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("ending", ["gif", "webp", "png"])
def test_an_animation_gives_its_first_frame(tmp_path, ending):
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "lime", "blue")]
    path = tmp_path / f"moving.{ending}"
    frames[0].save(path, save_all=True, append_images=frames[1:], **({"lossless": True} if ending == "webp" else {}))
    assert load_image(path).getpixel((16, 16)) == (255, 0, 0)


def test_content_beats_the_ending_of_the_name(tmp_path):
    path = tmp_path / "really_a_jpeg.png"
    Image.fromarray(gradient((96, 64))).save(path, format="JPEG")
    assert load_image(path).size == (96, 64)


def test_other_formats_behind_a_picture_name_never_reach_their_plug_in(tmp_path):
    path = tmp_path / "script.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n")
    with pytest.raises(BadPicture, match="not a picture of a known format"):
        read_header(path)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.png", b"", "the file is empty"),
        ("text.jpg", b"hello, I am a text\n" * 20, "not a picture of a known format"),
        ("long.png", png_header_only(1, 10_000), "1 x 10000 px is thinner than 1:16"),
        ("wide.png", png_header_only(3300, 200), "3300 x 200 px is thinner than 1:16"),
        ("dot.png", png_header_only(1, 1), "1 x 1 px is smaller than 8 px"),
        ("bomb.png", png_header_only(50_000, 50_000), "more than the 178956970 pixels allowed"),
        ("webp.webp", b"RIFF\x10\0\0\0WEBPVP8 ", "not a picture|damaged"),
    ],
)
def test_files_that_cannot_be_used_say_why(tmp_path, name, content, reason):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BadPicture, match=reason) as caught:
        read_header(path)
    assert name in str(caught.value)
    assert str(tmp_path) not in caught.value.reason
    with pytest.raises(BadPicture, match=reason):
        load_image(path)


@pytest.mark.parametrize("ending", ["png", "jpg", "gif", "webp", "bmp", "tiff"])
def test_cut_files_are_found_when_the_header_is_read(tmp_path, ending):
    random = np.random.default_rng(3).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    path = tmp_path / f"cut.{ending}"
    Image.fromarray(random).save(path)
    read_header(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(BadPicture, match="cut short|damaged|not a picture"):
        read_header(path)


@pytest.mark.parametrize("ending", ["png", "jpg", "gif"])
def test_data_after_the_end_does_no_harm(tmp_path, ending):
    path = save_picture(tmp_path / f"padded.{ending}")
    path.write_bytes(path.read_bytes() + b"\0" * 5000 + b"trailer")
    assert read_header(path).width_px == 96
    assert load_image(path).size == (96, 64)


def test_damage_in_the_middle_is_found_by_verifying(tmp_path):
    path = tmp_path / "middle.png"
    Image.fromarray(np.random.default_rng(4).integers(0, 255, (200, 200, 3), dtype=np.uint8)).save(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 64] = b"\xff" * 64
    path.write_bytes(bytes(data))
    read_header(path)
    with pytest.raises(BadPicture):
        read_header(path, verify=True)


def test_a_picture_that_is_gone_or_locked_says_so(tmp_path):
    with pytest.raises(BadPicture, match="the file is gone"):
        load_image(tmp_path / "gone.png")
    with pytest.raises(BadPicture, match="the file is gone"):
        content_hash(tmp_path / "gone.png")
    path = save_picture(tmp_path / "locked.png")
    path.chmod(0)
    if not os.access(path, os.R_OK):
        with pytest.raises(BadPicture, match="permission to read it was refused"):
            read_header(path)


def test_jpeg_xl_without_its_plug_in_names_the_command(tmp_path):
    path = tmp_path / "a.jxl"
    path.write_bytes(b"\xff\x0a" + b"\0" * 50)
    with pytest.raises(BadPicture, match="pip install pillow-jxl-plugin|damaged|known format"):
        read_header(path)


def test_names_are_recognised_in_any_case():
    assert is_picture_name("a.Jpg")
    assert is_picture_name("b.WEBP")
    assert is_picture_name("c.d.TiFF")
    assert not is_picture_name("a.txt")
    assert not is_picture_name("png")


def test_content_hash_is_of_the_bytes_and_follows_edits(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"first")
    assert content_hash(path) == hashlib.blake2b(b"first", digest_size=16).hexdigest()
    path.write_bytes(b"second!")
    assert content_hash(path) == hashlib.blake2b(b"second!", digest_size=16).hexdigest()


def test_fitting_scales_to_cover_and_crops_the_centre(tmp_path):
    image = load_image(save_picture(tmp_path / "a.png", (300, 200)))
    bucket = BucketRule(resolution_px=128, step_px=8, min_px=32, max_px=256).assign(300, 200)
    fitted = fit_to_bucket(image, bucket)
    assert fitted.pixels.shape == (bucket.height, bucket.width, 3)
    assert fitted.pixels.dtype == np.uint8
    assert fitted.crop == bucket.crop
    red = fitted.pixels[0, :, 0].astype(int)
    middle = (red[bucket.width // 2 - 1] + red[bucket.width // 2]) / 2
    assert abs(middle - 127.5) < 2.0  # the gradient's middle stays in the middle
    assert np.all(np.diff(red) >= 0)


def test_fitting_an_exact_picture_changes_nothing():
    pixels = gradient((128, 128))
    bucket = BucketRule(resolution_px=128, step_px=8, min_px=32, max_px=256).assign(128, 128)
    assert np.array_equal(fit_to_bucket(Image.fromarray(pixels), bucket).pixels, pixels)


def test_shrinking_averages_areas():
    stripes = np.zeros((256, 256, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    bucket = BucketRule(resolution_px=128, step_px=8, min_px=32, max_px=256).assign(256, 256)
    assert np.all(np.abs(fit_to_bucket(Image.fromarray(stripes), bucket).pixels.astype(int) - 127.5) <= 1.0)


def test_a_picture_that_changed_its_size_is_refused():
    bucket = BucketRule(resolution_px=128, step_px=8, min_px=32, max_px=256).assign(128, 128)
    with pytest.raises(FormatError, match="changed after the data set was opened"):
        fit_to_bucket(Image.new("RGB", (64, 64)), bucket)
