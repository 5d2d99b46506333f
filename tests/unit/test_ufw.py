"""The firewall's rule diff: from any state to the wanted one, with SSH never shut."""

import json
from dataclasses import asdict, replace

from hypothesis import given
from hypothesis import strategies as st

from facts.ufw import Firewall, OtherFirewalls, parse_others
from operations.ufw import Before, parse_before, restoration, ufw_commands, wanted_rules
from settings import Settings
from tasks.planning import Status, firewall_findings

WANTED = wanted_rules(ssh_ports=[2222, 22], denied=[8765], allowed=["443/tcp"])
RULES = st.sampled_from([*WANTED, "allow 80/tcp", "deny 25/tcp", "limit 22/tcp", "allow from 10.0.0.1"])
FIREWALLS = st.builds(
    Firewall,
    active=st.booleans(),
    default_incoming=st.sampled_from(["deny", "allow", "reject", None]),
    default_outgoing=st.sampled_from(["allow", "deny", None]),
    rules=st.lists(
        st.tuples(RULES, st.sampled_from(["", " comment 'local-llm'", " comment 'mine'"])).map("".join),
        unique_by=lambda rule: rule.split(" comment ")[0].partition(" ")[2],
        max_size=6,
    ).map(tuple),
)


def apply(firewall: Firewall, command: str) -> Firewall:
    """What ufw itself does with a command, as far as these commands go."""
    words = command.removeprefix("--force ")
    if words in ("enable", "disable"):
        return Firewall(words == "enable", firewall.default_incoming, firewall.default_outgoing, firewall.rules)
    if words.startswith("default "):
        _, policy, direction = words.split()
        incoming = policy if direction == "incoming" else firewall.default_incoming
        outgoing = policy if direction == "outgoing" else firewall.default_outgoing
        return Firewall(firewall.active, incoming, outgoing, firewall.rules)
    if words.startswith("delete "):
        gone = words.removeprefix("delete ")
        rules = tuple(rule for rule in firewall.rules if rule.split(" comment ")[0] != gone)
        return Firewall(firewall.active, firewall.default_incoming, firewall.default_outgoing, rules)
    # One action for a target: another one takes its place.
    target = words.split(" comment ")[0].partition(" ")[2]
    if any(rule.split(" comment ")[0].partition(" ")[2] == target for rule in firewall.rules):
        rules = tuple(
            words if rule.split(" comment ")[0].partition(" ")[2] == target else rule for rule in firewall.rules
        )
        return Firewall(firewall.active, firewall.default_incoming, firewall.default_outgoing, rules)
    return Firewall(firewall.active, firewall.default_incoming, firewall.default_outgoing, (*firewall.rules, words))


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


def with_ports(now: Firewall) -> Before:
    return Before(now.active, now.default_incoming, now.default_outgoing, now.rules, (22, 2222))


def undone(now: Firewall, before: Before | None, ssh_ports: list[int]) -> tuple[Firewall, list[Firewall], str]:
    """UFW after a restoration, all its states on the way, and what was left."""
    way = restoration(now, before, ssh_ports)
    states = [now]
    for command in way.commands:
        states.append(apply(states[-1], command))
    assert states[-1].active != way.is_off
    return states[-1], states, way.left


THEIRS = FIREWALLS.filter(lambda now: not any(rule.endswith("'local-llm'") for rule in now.rules))


@given(THEIRS)
def test_an_uninstall_puts_back_what_was_there(before: Firewall) -> None:
    now = before
    for command in ufw_commands(before, WANTED):
        now = apply(now, command)
    after, _, left = undone(now, with_ports(before), [22, 2222])
    assert not left
    assert after.active == before.active
    assert sorted(after.rules) == sorted(before.rules)
    assert after.default_incoming == (before.default_incoming or "deny")
    assert after.default_outgoing == (before.default_outgoing or "allow")


@given(THEIRS, st.sampled_from([22, 2222, 4444]), st.booleans())
def test_an_uninstall_never_shuts_a_port_of_ssh_that_a_rule_of_ours_opens(
    before: Firewall, moved_to: int, has_record: bool
) -> None:
    now = before
    for command in ufw_commands(before, wanted_rules([moved_to], [8765], ["443/tcp"])):
        now = apply(now, command)
    record = Before(before.active, before.default_incoming, before.default_outgoing, before.rules, (22,))
    after, states, left = undone(now, record if has_record else None, [moved_to])
    ours = f"allow {moved_to}/tcp comment 'local-llm'"
    if ours in now.rules and after.active and not (has_record and moved_to == 22):
        assert ours in after.rules
        assert left
    # Deleting comes after all that might be needed for it.
    assert all(ours in state.rules for state in states if state.active and ours in after.rules)


def test_rules_that_a_user_added_since_keep_ufw_on_with_ssh_open() -> None:
    before = Before(False, "deny", "allow", (), (22,))
    rules = ("allow 22/tcp comment 'local-llm'", "deny 8765/tcp comment 'local-llm'", "allow 80/tcp")
    after, _, left = undone(Firewall(True, "deny", "allow", rules), before, [22])
    assert after == Firewall(True, "deny", "allow", (rules[0], rules[2]))
    assert "allow 80/tcp" in left


def test_without_a_record_only_what_was_denied_goes() -> None:
    rules = (
        "allow 22/tcp comment 'local-llm'",
        "deny 8765/tcp comment 'local-llm'",
        "allow 443/tcp comment 'local-llm'",
    )
    after, _, left = undone(Firewall(True, "deny", "allow", rules), None, [22])
    assert after.rules == (rules[0], rules[2])
    assert "no record" in left
    # Nothing is said where nothing is ours.
    assert undone(Firewall(True, "deny", "allow", ("allow 22/tcp",)), None, [22])[2] == ""


def test_the_record_reads_back() -> None:
    before = with_ports(Firewall(True, None, "allow", ("allow 22/tcp comment 'it''s mine'",)))
    assert parse_before(json.dumps(asdict(before)).encode()) == before


def others(**states: str) -> OtherFirewalls:
    return parse_others(["@ufw", "@units", *(f"{unit}.service {state}" for unit, state in states.items())])


def test_whose_filters_are_in_use() -> None:
    assert others(firewalld="inactive", nftables="inactive disabled", docker="inactive masked") == OtherFirewalls()
    found = others(firewalld="active enabled", nftables="inactive enabled", docker="active enabled")
    assert found == OtherFirewalls(managers=("firewalld.service", "nftables.service"), docker=True)
    assert parse_others(["@ufw", "ENABLED=yes", "@units"]).ufw_is_on


def test_another_firewall_forbids_ours_until_one_is_given_up() -> None:
    def judge(others: OtherFirewalls, *, firewall: bool = True) -> list[Status]:
        return [finding.status for finding in firewall_findings(Settings(firewall=firewall), others)]

    nftables = OtherFirewalls(managers=("nftables.service",))
    assert judge(nftables) == [Status.FAIL]
    assert judge(nftables, firewall=False) == []
    # A host that was deployed so goes on.
    assert judge(replace(nftables, ufw_is_on=True)) == [Status.WARN]
    assert judge(OtherFirewalls(docker=True)) == [Status.WARN]
    assert judge(OtherFirewalls(docker=True, ufw_is_on=True)) == judge(OtherFirewalls()) == [Status.PASS]
