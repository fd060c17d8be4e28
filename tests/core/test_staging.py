"""Nothing that is there is written over."""

import pytest

from t5x_scale.core.errors import UserError
from t5x_scale.core.staging import check_target, staged


def test_what_is_new_or_empty_is_a_target(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new", "deep/new"):
        assert check_target(tmp_path / name) == tmp_path / name


@pytest.mark.parametrize("name", ["full", "full/file"])
def test_what_is_there_is_refused(tmp_path, name):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("kept")
    with pytest.raises(UserError, match="exists; nothing is overwritten: name a directory that does not exist yet"):
        check_target(tmp_path / name)


def test_a_link_that_leads_nowhere_is_refused_before_the_work_is_done(tmp_path):
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(UserError, match="link is a link that leads nowhere"):
        check_target(tmp_path / "link")


def test_a_directory_is_whole_or_absent(tmp_path):
    def fail():
        with staged(check_target(tmp_path / "new")) as directory:
            (directory / "half").write_text("")
            raise UserError("gone")

    with pytest.raises(UserError, match="gone"):
        fail()
    assert list(tmp_path.iterdir()) == []
    with staged(check_target(tmp_path / "new")) as directory:
        (directory / "whole").write_text("")
        assert not (tmp_path / "new").exists()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["whole"]
