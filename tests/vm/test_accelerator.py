"""What decides between KVM and an emulated CPU."""

from __future__ import annotations

from sandbox.vm import boot_problem, ensure_qemu


def test_a_guest_that_boots_is_told_from_one_that_does_not() -> None:
    ensure_qemu()
    assert boot_problem("tcg", "max") is None
    assert boot_problem("tcg", "no-such-cpu") is not None
