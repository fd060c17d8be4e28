"""What `--dry_run` prints."""

import sample_commands


def test_macros_are_expanded_and_defaults_marked(cli):
    result = cli("train", "--dry_run", "--gin.TRAIN_STEPS=12")
    assert result.code == 0
    assert not result.calls
    assert "    train_steps = 12\n" in result.out
    assert "    optimizer = @sample_parts.Adam()\n" in result.out
    assert "    name = 'model'  # default\n" in result.out
    assert "train/sample_parts.Data:\n    task = 'books'\n    batch_size = 32\n" in result.out
    assert "train_eval/sample_parts.Data:\n    task = 'books'\n    batch_size = 4\n" in result.out
    assert "%" not in result.out.split("# Not used")[0]


def test_what_the_command_does_not_use(cli):
    result = cli("train", "--dry_run", "--gin.OPTIMIZER=None")
    unused = result.out.split("# Not used by t5x_scale train\n")[1]
    assert "sample_commands.evaluate.split (base.gin:31) = 'validation'  # used by eval\n" in unused
    assert (
        "sample_parts.Adam.learning_rate (base.gin:21) = @sample_parts.Constant()  # what used it was overridden\n"
        in unused
    )
    assert "train_steps" not in unused


def test_what_another_command_lacks(cli):
    result = cli("train", "--dry_run", "--gin.evaluate.split=%gin.REQUIRED", "--gin.greedy.temperature=%NOWHERE")
    assert "sample_commands.evaluate.split is REQUIRED  # needed by eval" in result.out
    assert "%NOWHERE is not defined  # needed by eval" in result.out


def test_hook_of_the_command(cli, monkeypatch):
    assert cli("train", "--dry_run", "--gin.Model.name='palm'").out.endswith("TABLE of palm\n")
    monkeypatch.setattr(sample_commands, "dry_run", lambda train_steps, config_text: f"{train_steps} {config_text[:4]}")
    assert cli("train", "--dry_run").out.endswith("10 from\n")
    monkeypatch.delattr(sample_commands, "dry_run")
    assert "TABLE" not in cli("train", "--dry_run").out


def test_mistakes_are_found_too(cli):
    assert cli("train", "--dry_run", "--gin.TRAIN_STEPS=%gin.REQUIRED").code == 1
    assert cli("train", "--dry_run", "--gin.STESP=1").code == 1


def test_same_text_every_time(cli):
    assert cli("train", "--dry_run").out == cli("train", "--dry_run").out
