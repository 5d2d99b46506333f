"""Running commands: whatever one says, for however long, is bounded."""

import pytest

from checks.host import MOST_BYTES, Command, Host


def test_a_command_leaves_code_and_both_outputs() -> None:
    done = Host().run("sh", "-c", r"printf 'a\303\244\377\nb'; echo no >&2; exit 3")
    assert done == Command(3, "aä�\nb", "no\n")


@pytest.mark.parametrize("way", ["", ">&2"])
def test_one_that_says_too_much_is_ended(way: str) -> None:
    done = Host().run("sh", "-c", f"exec yes 0123456789012345678901234567890123456789 {way}")
    assert done.cut
    assert done.code == 0
    assert len(done.stdout) + len(done.stderr) <= MOST_BYTES + 2**17
    assert done.stdout == "" or done.stdout.endswith("9\n")


def test_one_that_says_nothing_is_given_up() -> None:
    with pytest.raises(TimeoutError, match=r"`sleep 30` gave no answer in 0 s"):
        Host().run("sleep", "30", timeout_seconds=0.2)


def test_one_that_closes_its_ends_is_waited_for() -> None:
    assert Host().run("sh", "-c", "exec >&- 2>&-; sleep 0.2; exit 4").code == 4
    with pytest.raises(TimeoutError):
        Host().run("sh", "-c", "exec >&- 2>&-; sleep 30", timeout_seconds=0.2)


def test_a_message_is_short() -> None:
    assert len(Command(1, "", "x" * 10_000).message) == 300
