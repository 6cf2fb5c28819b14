"""`sample.py` on a tiny run."""

import dataclasses

import pytest
from PIL import Image

from imagen_jax.cli import sample
from imagen_jax.cli.sampling_flags import SAMPLING_FLAGS
from imagen_jax.cli.weights_flags import find_weights
from imagen_jax.errors import UserError
from imagen_jax.sampling import PictureFolder

CONFIG = "configs/tiny.py"


def test_a_run_is_sampled_without_a_config(workdir, tmp_path, capsys):
    status = sample.main(
        [
            f"--workdir={workdir}",
            "--prompts=a red circle",
            "--prompts=",
            "--num_images=2",
            "--num_steps=base=2,sr16=1",
            "--guidance_weight=1.5",
            f"--out={tmp_path / 'out'}",
        ]
    )
    printed = capsys.readouterr()
    assert status == 0, printed.err
    assert "base: 8x8" in printed.out and "sr16: 16x16" in printed.out
    assert "saw only 16 images" in printed.err
    # Two prompts, two pictures each: what is counted are the pictures that were asked for.
    assert "\n4 pictures (each by the stages base, sr16) in " in printed.out
    assert "compiling base 0/4" in printed.err and "drawing sr16 4/4" in printed.err
    names = sorted(p.name for p in (tmp_path / "out").rglob("*.png"))
    pictures = [f"000_seed{s}_a-red-circle.png" for s in (0, 1)]
    pictures += [f"001_seed{s}.png" for s in (0, 1)]
    assert names == sorted(pictures * 2 + ["grid_base.png", "grid_sr16.png"])
    with Image.open(tmp_path / "out" / "sr16" / "000_seed1_a-red-circle.png") as file:
        assert '"num_steps": 1' in file.text["settings"]
        assert file.text["prompt"] == "a red circle"


def test_an_interrupted_run_continues_and_others_are_not_overwritten(
    workdir, tmp_path, monkeypatch, capsys
):
    arguments = [f"--workdir={workdir}", "--prompts=a", "--prompts=b", "--num_steps=1"]
    arguments += ["--num_images=1", "--batch_size=1", "--stages=base", f"--out={tmp_path / 'out'}"]
    write = PictureFolder.write

    def stop(folder, stage, row, picture):
        if row == 1:
            raise KeyboardInterrupt
        write(folder, stage, row, picture)

    with monkeypatch.context() as patch:
        patch.setattr(PictureFolder, "write", stop)
        assert sample.main(arguments) == 130
    assert "the same command continues" in capsys.readouterr().err
    first = tmp_path / "out" / "base" / "000_seed0_a.png"
    time = first.stat().st_mtime_ns
    assert sample.main(arguments) == 0
    assert "1 of 2 pictures in" in (printed := capsys.readouterr().out) and "1 picture " in printed
    assert first.stat().st_mtime_ns == time
    assert (tmp_path / "out" / "base" / "001_seed0_b.png").exists()
    assert sample.main([*arguments, "--seed=1"]) == 2
    assert "seeds: [0] in the directory, [1] now" in capsys.readouterr().err
    # Without --out each request has a directory of its own.
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1, 1):
        assert sample.main([*arguments[:-1], f"--seed={seed}"]) == 0
    assert len(list((tmp_path / "outputs").iterdir())) == 2


def test_settings_of_the_config_are_overridden(workdir, tmp_path, capsys):
    status = sample.main(
        [
            f"--weights={workdir}",
            "--config=tiny",
            "--config.stages.base.sample.num_steps=1",
            "--config.stages.base.sample.guidance.weight=1.25",
            "--guidance_weight=base=1.5",
            "--prompts=a red circle",
            "--num_images=1",
            "--stages=base",
            f"--out={tmp_path}",
        ]
    )
    assert status == 0, capsys.readouterr().err
    with Image.open(tmp_path / "base" / "000_seed0_a-red-circle.png") as file:
        assert '"num_steps": 1' in file.text["settings"]
        assert '"guidance": {"weight": 1.5,' in file.text["settings"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--percentile=0.995"], "99.5"),
        (["--stages=base,sr64"], "no stage 'sr64'"),
        (["--num_steps=sr64=3"], "no stage 'sr64'"),
        (["--num_steps=many"], "'many' is not a whole number"),
        (["--guidance_weight=x"], "'x' is not a number"),
        (["--negative_prompt=x", "--guidance_weight=1"], "'x' does nothing"),
        (["--guidance_interval=2:-3"], "interval=(2.0, -3.0) is empty"),
        (["--guidance_interval=2"], "'2' is not LOW:HIGH"),
        (["--guidance_rescale=1.5"], "rescale=1.5 must be in [0, 1]"),
        (["--prompts=(a:1.2", "--prompt_weights"], "has no closing one"),
        (["--guide_weights=nowhere"], "--guide_weights=nowhere is not a directory"),
        (["--guide_weights=shapes"], "guide weights"),
        (["--sampler=plms"], "one of ddim, ancestral"),
        (["--aspect=3:2"], "'base' was not trained on pictures of 3:2"),
        (["--aspect=wide"], "'wide' is no aspect ratio"),
        (["--low_res_image=missing.png"], "missing.png does not exist"),
        (["--prompts_file=missing.txt"], "missing.txt cannot be read"),
        (["--config=configs/missing.py"], "does not exist"),
        (["--text_encoder=nowhere"], "nowhere"),
        (["--config=tiny", "--config.text.encoder=nowhere"], "text.encoder is 'nowhere'"),
        (["--config=tiny", "--config.stages.base.model.channels=(8,16)"], "base.model is not what"),
        (["--weights=shapes"], "--weights=shapes, not both"),
    ],
)
def test_bad_input_is_a_message_and_status_2(workdir, tmp_path, capsys, arguments, message):
    out = f"--out={tmp_path}"
    status = sample.main([f"--workdir={workdir}", "--prompts=a", "--num_images=1", out, *arguments])
    printed = capsys.readouterr()
    assert status == 2
    assert message in printed.err and "Traceback" not in printed.err
    assert not list(tmp_path.rglob("*.png"))


def test_neither_weights(tmp_path, capsys):
    assert sample.main(["--prompts=a", f"--out={tmp_path}"]) == 2
    assert "python train.py --config=" in capsys.readouterr().err
    assert sample.main([f"--config={CONFIG}", "--prompts=a", f"--out={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert f"python train.py --config={CONFIG} --workdir=runs/tiny" in error
    assert sample.main([f"--workdir={tmp_path}", "--prompts=a", f"--out={tmp_path}"]) == 2
    assert "python train.py --config=" in capsys.readouterr().err


def test_no_prompt_and_out_that_is_a_file(workdir, tmp_path, capsys):
    assert sample.main([f"--workdir={workdir}", f"--out={tmp_path}"]) == 2
    assert "no prompt" in capsys.readouterr().err
    file = tmp_path / "file"
    file.write_text("x")
    assert sample.main([f"--workdir={workdir}", "--prompts=a", f"--out={file}"]) == 2
    assert "is a file" in capsys.readouterr().err


def test_config_of_another_network(workdir, config, tmp_path):
    stage = config.stages["base"]
    model = dataclasses.replace(stage.model, channels=(8, 16))
    other = dataclasses.replace(
        config, stages={**config.stages, "base": dataclasses.replace(stage, model=model)}
    )
    with pytest.raises(UserError, match=r"base.model is not what"):
        find_weights("mine.py", other, str(workdir), None)
    assert find_weights("mine.py", config, str(workdir), None).config == config


def test_prompts_file(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffone\r\n\r\n  two\u2028still two \n".encode())
    expected = ["zero", "one", "two\u2028still two"]
    assert sample.read_prompts(["zero"], str(path)) == [(text, None) for text in expected]
    path.write_bytes(b"\n \n")
    with pytest.raises(UserError, match="holds no prompt"):
        sample.read_prompts([], str(path))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="UTF-8"):
        sample.read_prompts([], str(path))


def test_prompts_file_with_negative_prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "one"}\n\n{"prompt": "two", "negative_prompt": ""}\n')
    assert sample.read_prompts([], str(path)) == [("one", None), ("two", "")]
    for line, message in (
        ("one", "'one' is not JSON"),
        ('{"negative_prompt": "two"}', "is no prompt"),
        ('{"prompt": "one", "negative": "two"}', "is no prompt"),
        ('{"prompt": 1}', "is no prompt"),
        ('["one"]', "is no prompt"),
    ):
        path.write_text(line)
        with pytest.raises(UserError, match=message):
            sample.read_prompts([], str(path))


@pytest.mark.slow
def test_negative_prompts_weights_and_a_guide_are_recorded(workdir, tmp_path, capsys):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        '{"prompt": "a (red:1.5) circle"}\n{"prompt": "b", "negative_prompt": "a star"}\n'
    )
    arguments = [f"--workdir={workdir}", f"--prompts_file={prompts}", "--num_images=1"]
    arguments += ["--num_steps=2", "--stages=base", f"--out={tmp_path / 'out'}"]
    given = ["--negative_prompt=blue", "--prompt_weights", f"--guide_weights={workdir}"]
    given += ["--guidance_rescale=0.5", "--guide_weight=1.5"]
    assert sample.main([*arguments, *given]) == 0, capsys.readouterr().err
    written = sorted((tmp_path / "out" / "base").glob("*.png"))
    texts = []
    for path in written:
        with Image.open(path) as file:
            texts.append(dict(file.text))
    assert [text["negative_prompt"] for text in texts] == ["blue", "a star"]
    assert texts[0]["prompt"] == "a (red:1.5) circle" and texts[0]["prompt_weights"] == "true"
    assert '"rescale": 0.5' in texts[0]["settings"]
    assert '"base": "' in texts[0]["guide_weights"]
    # Pictures of other negative prompts do not mix.
    assert sample.main([*arguments, *given, "--negative_prompt=green"]) == 2
    assert "negative_prompts.0: blue in the directory, green now" in capsys.readouterr().err
    assert sample.main([*arguments, *given[:1], *given[2:]]) == 2
    assert "prompt_weights: True in the directory, (absent) now" in capsys.readouterr().err
    assert sample.main([*arguments, *given[:2], *given[3:]]) == 2
    assert "guide_weights.base: " in capsys.readouterr().err


def test_help_is_complete(capsys):
    assert sample.main(["--help"]) == 0
    text = capsys.readouterr().out
    for name in (*SAMPLING_FLAGS, "workdir", "weights", "low_res_image", "prompts_file"):
        assert f"--{name}" in text


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.effect_noise((16, 16), 90).convert("RGB").save(path)
    return path


@pytest.mark.slow
def test_inpainting_keeps_what_is_black_in_the_mask(workdir, picture, tmp_path, capsys):
    mask, out = tmp_path / "mask.png", tmp_path / "out"
    half = Image.new("L", (16, 16))
    half.paste(255, (8, 0, 16, 16))
    half.save(mask)
    arguments = [f"--workdir={workdir}", f"--init_image={picture}", f"--mask={mask}"]
    arguments += ["--num_images=1", "--num_steps=2", "--resample=sr16=2", f"--out={out}"]
    assert sample.main(arguments) == 0, capsys.readouterr().err
    with Image.open(out / "sr16" / "000_seed0.png") as drawn, Image.open(picture) as given:
        left, right = (0, 0, 8, 16), (8, 0, 16, 16)
        assert drawn.crop(left).tobytes() == given.crop(left).tobytes()
        assert drawn.crop(right).tobytes() != given.crop(right).tobytes()
        assert '"resample": {"base": 1, "sr16": 2}' in drawn.text["editing"]
    # The same command continues; another mask is refused.
    assert sample.main(arguments) == 0
    assert "1 of 1 pictures in" in capsys.readouterr().out
    half.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(mask)
    assert sample.main(arguments) == 2
    assert "editing.mask_sha256" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--init_image=missing.png"], "picture missing.png does not exist"),
        (["--init_image=setup.cfg"], "setup.cfg cannot be read as a picture"),
        (["--mask=x.png"], "--mask=x.png needs --init_image"),
        (["--init_image=PICTURE", "--mask=BLACK"], "black everywhere"),
        (["--init_image=PICTURE", "--mask=SMALL"], "the mask is 8x8 pixels and the picture 16x16"),
        (["--init_image=PICTURE", "--resample=3"], "--resample=3 needs --mask or --outpaint"),
        (["--init_image=PICTURE", "--strength=0"], "strength=0.0 must be in (0, 1]"),
        (["--init_image=PICTURE", "--strength=nan"], "--strength=nan must be finite"),
        (["--init_image=PICTURE", "--strength=base=2"], "strength=2.0"),
        (["--strength=0.5"], "--strength=0.5 needs --init_image"),
        (["--init_image=PICTURE", "--outpaint=1,2,3"], "four margins"),
        (["--init_image=PICTURE", "--upscale=PICTURE"], "are both given"),
        (["--upscale=PICTURE", "--size=16x16"], "are both given"),
        (["--upscale=missing.png"], "missing.png does not exist"),
        (["--size=16"], "--size: '16' is no size"),
        (["--size=24x16", "--aspect=3:2"], "--aspect=3:2 is not for --size"),
        (["--tile_overlap=4"], "--tile_overlap=4 needs --tile"),
    ],
)
def test_bad_edits_are_refused_before_weights_are_read(
    picture, tmp_path, capsys, arguments, message
):
    Image.new("L", (16, 16)).save(tmp_path / "black.png")
    Image.new("L", (8, 8), 255).save(tmp_path / "small.png")
    for name in ("picture", "black", "small"):
        file = str(tmp_path / f"{name}.png")
        arguments = [argument.replace(name.upper(), file) for argument in arguments]
    assert sample.main(["--workdir=nowhere", "--prompts=a", *arguments]) == 2
    printed = capsys.readouterr().err
    assert message in printed and "Traceback" not in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size=21x16"], " wide, 16 high"),
        (["--tile=12"], "was trained on pictures of 16 pixels"),
        (["--tile=base=8,sr16=17"], "must be a multiple of"),
        (["--init_image=PICTURE", "--strength=sr99=0.5"], "strength for 'sr99'"),
    ],
)
def test_edits_that_the_stages_cannot_draw(workdir, picture, tmp_path, capsys, arguments, message):
    arguments = [argument.replace("PICTURE", str(picture)) for argument in arguments]
    out = tmp_path / "out"
    assert sample.main([f"--workdir={workdir}", "--prompts=a", f"--out={out}", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
