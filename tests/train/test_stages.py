"""Each stage moves exactly what its row says and nothing else, and hands over to the next."""

from __future__ import annotations

import pytest
import torch
from model_assets import ASSETS, BASE, PROJECTOR, released
from tiny_training import flags, losses

from revisionllm.model.config import read_config
from revisionllm.model.loading import load_model
from revisionllm.model.tensors import read_tensors
from revisionllm.train.arguments import check, parse
from revisionllm.train.initial import initial_model
from revisionllm.train.losses import QuestionLosses
from revisionllm.train.stages import DATASETS, read_recipe
from revisionllm.train.train import main

CASES = [
    ("mad", "dense", ".lora_"),
    ("mad", "sparse", "projector."),
    ("mad", "long", ".lora_"),
    ("chapters", "dense", ".lora_"),
    ("chapters", "long", (".lora_", "alternate_layer_norm")),
]


@pytest.mark.parametrize(("dataset", "stage", "moves"), CASES)
def test_two_steps_move_exactly_what_is_trained(
    trained, tmp_path, monkeypatch, dataset, stage, moves
):
    import revisionllm.train.initial as initial

    kept = {}

    def remember(args, **settings):
        kept["model"] = model = initial_model(args, **settings)
        kept["before"] = {n: p.detach().clone() for n, p in model.named_parameters()}
        return model

    monkeypatch.setattr(initial, "initial_model", remember)
    # a new LoRA's A gets no gradient in the first step, and the first step's rate is 0
    settings = {"max_steps": 4, "output_dir": tmp_path / "run"}
    if (dataset, stage) == ("chapters", "dense"):
        settings |= {"init_lora": trained / "dense", "lora_init": "continue"}
    assert main(flags(trained, stage, dataset, **settings)) == 0
    moves = (moves,) if isinstance(moves, str) else moves
    for name, parameter in kept["model"].named_parameters():
        moved = not torch.equal(parameter, kept["before"][name])
        assert moved == any(part in name for part in moves), name


def test_the_run_that_is_written_is_the_model_that_was_trained(trained, monkeypatch, tmp_path):
    import revisionllm.train.initial as initial

    kept = {}

    def remember(args, **settings):
        kept["model"] = initial_model(args, **settings)
        return kept["model"]

    monkeypatch.setattr(initial, "initial_model", remember)
    main(flags(trained, "long", "chapters", output_dir=tmp_path / "run", max_steps=3))
    loaded = load_model(tmp_path / "run", device="cpu", lora_mode="frozen")
    for (name, mine), (_, other) in zip(
        kept["model"].named_parameters(), loaded.named_parameters(), strict=True
    ):
        assert torch.equal(mine, other), name
    config = read_config(tmp_path / "run")
    assert (config.stage, config.question, config.num_segments) == ("long", "video", 8)
    assert config.adapter.output == "alternate" and config.adapter.options["output_norm"]
    dense = read_tensors(trained / "dense" / "adapter.safetensors")  # what odd steps see frames by
    assert torch.equal(loaded.projector.frame_projector.weight, dense["linear.weight"])
    assert config.window_s == 20 and config.segment_stride_s == 4 and config.stride_s == 10
    assert config.parent == str(trained / "dense")


def test_merge_then_new_keeps_the_function_and_names_both_loras(trained, tmp_path):
    main(flags(trained, "dense", output_dir=tmp_path / "run", init_lora=trained / "dense",
               lora_init="merge_then_new", max_steps=1, learning_rate=1e-9))  # fmt: skip
    # a step this small leaves the new LoRA a no-op
    before, after = (load_model(run, device="cpu") for run in (trained / "dense", tmp_path / "run"))
    assert read_config(tmp_path / "run").lora == [
        str(trained / "dense" / "lora"),
        str(tmp_path / "run" / "lora"),
    ]
    for (name, one), (_, two) in zip(
        before.named_parameters(), after.named_parameters(), strict=True
    ):
        torch.testing.assert_close(one, two, msg=name)


def test_mad_dense_starts_from_published_checkpoints(world, tmp_path):
    """A published LoRA on a published projector is trained on, with our own time mapping."""
    published = {"base": BASE, "init_projector": PROJECTOR, "init_lora": ASSETS / "ckpt_dense"}
    argv = flags(world, "dense", **published, lora_init="continue", output_dir=tmp_path / "run")
    model = initial_model(parse(argv), dtype="float32")
    before = released("ckpt_dense", lora_mode="frozen")
    for (name, ours), (_, theirs) in zip(
        model.named_parameters(), before.named_parameters(), strict=True
    ):
        assert torch.equal(ours, theirs), name
        assert ours.requires_grad == (".lora_" in name)
    assert model.config.time_mapping == "centered"
    assert model.config.parent == str(ASSETS / "ckpt_dense")
    assert model.config.window_s == 20


def test_a_new_projector_learns_together_with_the_lora(world, tmp_path):
    words = [*flags(world, "dense", output_dir=tmp_path / "dense"), "--train_projector"]
    assert main(words) == 0
    before, after = (
        load_model(run, device="cpu").projector.state_dict()
        for run in (world / "start", tmp_path / "dense")
    )
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert (tmp_path / "dense" / "lora").is_dir()


def test_long_can_train_its_adapter_together_with_the_lora(trained, tmp_path, capsys):
    words = flags(trained, "long", output_dir=tmp_path / "long", max_steps=4)
    assert main([*words, "--train_projector"]) == 0
    before, after = (
        load_model(run, device="cpu").projector.state_dict()
        for run in (trained / "sparse", tmp_path / "long")
    )
    assert all(not torch.equal(before[name], after[name]) for name in before)
    chapters = flags(trained, "long", "chapters", output_dir=tmp_path / "chapters", max_steps=1)
    assert main([*chapters, "--train_projector"]) == 2
    assert "trains the norm alone" in capsys.readouterr().err
    assert main(chapters) == 0
    alternating = flags(trained, "long", init_adapter=tmp_path / "chapters", output_dir=tmp_path)
    assert main([*alternating, "--train_projector"]) == 2
    assert "gives 'alternate'" in capsys.readouterr().err


def test_a_continued_lora_keeps_its_dropout_unless_told(trained):
    def dropouts(**changes):
        words = flags(trained, "long", init_lora=trained / "dense", lora_init="continue", **changes)
        model = initial_model(parse(words), dtype="float32")
        return {
            module.p
            for name, module in model.named_modules()
            if ".lora_dropout." in name and isinstance(module, torch.nn.Dropout)
        }

    assert dropouts() == {0.05}
    assert dropouts(lora_dropout=0.2) == {0.2}
    assert dropouts(lora_dropout=0) == set()


def test_sparse_adapter_options_reach_the_run(world, trained, tmp_path):
    options = {"adapter_ffn_dim": 24, "digit_position_segments": 30}
    assert main(flags(world, "sparse", output_dir=tmp_path / "sparse", **options)) == 0
    config = read_config(tmp_path / "sparse").adapter
    assert config.options == {"ffn_dim": 24, "digit_position_segments": 30}
    long = parse(flags(world, "long", init_adapter=tmp_path / "sparse"))
    projector = initial_model(long, dtype="float32").projector
    assert projector.position.table.shape == (2, 10, 64)


def test_sparse_adapter_can_be_trained_for_spans(trained):
    args = parse(flags(trained, "sparse", sparse_target="span"))
    model = initial_model(args, dtype="float32")
    assert (model.config.question, model.config.adapter.output) == ("frames", "segment")


def test_loss_falls(world, tmp_path):
    main(flags(world, "dense", output_dir=tmp_path / "run", max_steps=12, learning_rate=2e-2))
    found = losses(tmp_path / "run")
    assert len(found) == 12 and min(found[-2:]) <= 0.9 * found[0]


def test_loss_falls_in_stage_long(trained, tmp_path):
    run = tmp_path / "run"
    assert main(flags(trained, "long", output_dir=run, max_steps=30, learning_rate=1e-2)) == 0
    found = losses(run)
    assert len(found) == 30 and sum(found[-3:]) / 3 <= 0.9 * found[0]


def test_frozen_parts_have_no_dropout(trained):
    sparse = parse(flags(trained, "sparse"))
    model = QuestionLosses(initial_model(sparse, dtype="float32")).train()
    assert model.model.projector.training and model.model.llm.training
    dropouts = [m for n, m in model.named_modules() if n.endswith("lora_dropout")]
    assert dropouts and not any(module.training for module in dropouts)
    long = parse(flags(trained, "long"))
    model = QuestionLosses(initial_model(long, dtype="float32")).train()
    assert not model.model.projector.training
    assert all(m.training for n, m in model.named_modules() if n.endswith("lora_dropout"))


TABLE = [row for name in DATASETS for row in read_recipe(name).values()]


def test_default_paths_form_a_chain():
    """Every input of a stage is written by another stage or comes from outside the curriculum."""
    written, outside = {}, ("vicuna", "vtimellm", "train_demo/dense", "train_demo/segments")
    for row in TABLE:
        args = parse(["--dataset", row.dataset, "--stage", row.stage])
        assert args.output_dir not in written
        written[args.output_dir] = row
    for row in TABLE:
        args = parse(["--dataset", row.dataset, "--stage", row.stage])
        starts = [args.init_lora, args.init_adapter, args.init_projector, args.base]
        for path in filter(None, starts):
            if not any(word in path for word in outside):
                earlier = written[path]
                assert (earlier.stage == "sparse") == (path == args.init_adapter)
        if args.init_lora in written:
            assert args.lora_init in ("continue", None)


def test_a_finished_run_is_left_alone(trained, caplog):
    before = (trained / "dense" / "config.json").stat().st_mtime_ns
    assert main(flags(trained, "dense", max_steps=3)) == 0
    assert (trained / "dense" / "config.json").stat().st_mtime_ns == before


def test_another_learning_rate_does_not_continue_a_run(trained, capsys):
    assert main(flags(trained, "dense", max_steps=3, learning_rate=1e-3)) == 2
    assert "--learning_rate was 0.01, is 0.001" in capsys.readouterr().err


def test_check_accepts_the_tiny_stages(trained):
    for stage in ("dense", "sparse", "long"):
        check(parse(flags(trained, stage)))
