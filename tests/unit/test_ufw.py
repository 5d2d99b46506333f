"""The firewall's rule diff: from any state to the wanted one, with SSH never shut."""

from hypothesis import given
from hypothesis import strategies as st

from facts.ufw import Firewall
from operations.ufw import ufw_commands, wanted_rules

WANTED = wanted_rules(ssh_ports=[2222, 22], denied=[8765], allowed=["443/tcp"])
RULES = st.sampled_from([*WANTED, "allow 80/tcp", "deny 25/tcp", "limit 22/tcp", "allow from 10.0.0.1"])
FIREWALLS = st.builds(
    Firewall,
    active=st.booleans(),
    default_incoming=st.sampled_from(["deny", "allow", "reject", None]),
    default_outgoing=st.sampled_from(["allow", "deny", None]),
    rules=st.lists(
        st.tuples(RULES, st.sampled_from(["", " comment 'local-llm'", " comment 'mine'"])).map("".join),
        unique_by=lambda rule: rule.split(" comment ")[0],
        max_size=6,
    ).map(tuple),
)


def apply(firewall: Firewall, command: str) -> Firewall:
    """What ufw itself does with a command, as far as these commands go."""
    words = command.removeprefix("--force ")
    if words == "enable":
        return Firewall(True, firewall.default_incoming, firewall.default_outgoing, firewall.rules)
    if words.startswith("default "):
        _, policy, direction = words.split()
        incoming = policy if direction == "incoming" else firewall.default_incoming
        outgoing = policy if direction == "outgoing" else firewall.default_outgoing
        return Firewall(firewall.active, incoming, outgoing, firewall.rules)
    if words.startswith("delete "):
        gone = words.removeprefix("delete ")
        rules = tuple(rule for rule in firewall.rules if rule.split(" comment ")[0] != gone)
        return Firewall(firewall.active, firewall.default_incoming, firewall.default_outgoing, rules)
    return Firewall(firewall.active, firewall.default_incoming, firewall.default_outgoing, (*firewall.rules, words))


def test_ssh_comes_first_and_enabling_last() -> None:
    assert ufw_commands(Firewall(), WANTED) == [
        "allow 22/tcp comment 'local-llm'",
        "allow 2222/tcp comment 'local-llm'",
        "deny 8765/tcp comment 'local-llm'",
        "allow 443/tcp comment 'local-llm'",
        "default deny incoming",
        "default allow outgoing",
        "--force enable",
    ]


@given(FIREWALLS)
def test_one_run_is_enough_and_keeps_a_users_rules(now: Firewall) -> None:
    after = now
    for command in ufw_commands(now, WANTED):
        after = apply(after, command)
    assert ufw_commands(after, WANTED) == []
    assert {rule for rule in now.rules if not rule.endswith("'local-llm'")} <= set(after.rules)
    plain = {rule.split(" comment ")[0] for rule in after.rules}
    assert set(WANTED) <= plain | {rule.replace("limit", "allow") for rule in plain}
    assert not {rule for rule in after.rules if rule.endswith("'local-llm'")} - {
        f"{r} comment 'local-llm'" for r in WANTED
    }


@given(FIREWALLS)
def test_incoming_is_never_denied_before_ssh_is_allowed(now: Firewall) -> None:
    after = now
    for command in ufw_commands(now, WANTED):
        after = apply(after, command)
        if "default deny incoming" in command or "enable" in command:
            plain = {rule.split(" comment ")[0] for rule in after.rules}
            assert plain & {"allow 22/tcp", "limit 22/tcp"}
            assert "allow 2222/tcp" in plain


def test_a_users_limit_on_ssh_stays_a_limit() -> None:
    now = Firewall(True, "deny", "allow", ("limit 22/tcp", "allow 2222/tcp", "deny 8765/tcp", "allow 443/tcp"))
    assert ufw_commands(now, WANTED) == []


def test_ssh_that_a_user_narrowed_to_an_address_is_not_opened_to_all() -> None:
    rules = ("allow from 192.0.2.7 to any port 22 proto tcp", "allow 2222/tcp", "deny 8765/tcp", "allow 443/tcp")
    assert ufw_commands(Firewall(True, "deny", "allow", rules), WANTED) == []
    # While UFW is off, or lets everybody in, nothing proves that the rule lets this session in.
    for unproven in (Firewall(False, "deny", "allow", rules), Firewall(True, "allow", "allow", rules)):
        assert ufw_commands(unproven, WANTED)[0] == "allow 22/tcp comment 'local-llm'"
