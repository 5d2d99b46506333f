"""What the units reach is the same on a kernel of its own: the containers' tests, on the virtual machine."""

from tests.container.test_reach import (
    planted,
    test_a_job_reaches_no_socket_and_shares_nothing,
    test_a_unit_reaches_what_it_needs_and_shares_nothing,
    test_every_unit_is_listed,
    test_outside_of_a_sandbox_everything_is_reached,
    test_the_check_on_the_host_sees_a_hole_in_the_sandbox,
)

__all__ = [
    "planted",
    "test_a_job_reaches_no_socket_and_shares_nothing",
    "test_a_unit_reaches_what_it_needs_and_shares_nothing",
    "test_every_unit_is_listed",
    "test_outside_of_a_sandbox_everything_is_reached",
    "test_the_check_on_the_host_sees_a_hole_in_the_sandbox",
]
