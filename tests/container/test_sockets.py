"""Who can reach, take or exchange which socket: by attacks of code inside llama-server and of a user of the host."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from checks.contract import paths
from sandbox.servers.cloud import Cloud
from tests.container.clouds import deployed_with
from tests.container.conftest import with_settings
from tests.container.machine import Machine, eventually

API = "http://127.0.0.1:8765"
PORTS = (8765, 8766)
DROP_IN = "/etc/systemd/system/local-llm.service.d/test.conf"
ATTACK = "/opt/local-llm/test-attack.py"
REQUESTS = 100

SWAPPER = """
import os, subprocess, sys, time
name, real = "/run/local-llm/llama.sock", "/run/local-llm/real.sock"

def put(make, target):
    make(target, name + ".new")
    os.replace(name + ".new", name)

server = subprocess.Popen(["/opt/local-llm/current/bin/llama-server"])
while not os.path.exists(name):
    time.sleep(0.01)
time.sleep(2)
os.rename(name, real)
while server.poll() is None:
    for target in sys.argv[1:]:
        put(os.link, real)
        time.sleep(1.15)
        try:
            put(os.link, target)
        except OSError:
            put(os.symlink, target)
        time.sleep(1.7)
"""
"""Code inside llama-server that puts links to the gateway's sockets in its own socket's place, and takes them away
again before the gateway's check has failed three times."""

IMPOSTOR = """
import os, sys, time
os.symlink(sys.argv[1], "/run/local-llm/llama.sock")
time.sleep(600)
"""
"""The same, before llama-server's socket is published."""

SQUATTER = """
import itertools, socket, sys, time
tries = 0
while True:
    for port, address, reuse, share in itertools.product(
        map(int, sys.argv[1:]), ("127.0.0.1", "0.0.0.0", "::1", "::"), (0, 1), (0, 1)
    ):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family) as taken:
            if family == socket.AF_INET6:
                taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, share)
            tries += 1
            try:
                taken.bind((address, port))
                taken.listen()
            except OSError:
                continue
            print("took", address, port, flush=True)
    if tries % 800 == 0:
        print("tried", flush=True)
"""
"""A user of the host who wants a port for as long as it takes."""

CONNECT = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"


@contextmanager
def attacked(machine: Machine, program: str, *targets: str) -> Iterator[None]:
    """The program in llama-server's place, in its sandbox."""
    machine.sh(f"cat > {ATTACK} <<'END'\n{program}\nEND")
    command = " ".join(["/usr/bin/python3", ATTACK, *targets])
    machine.sh(
        f"mkdir -p {DROP_IN.rsplit('/', 1)[0]}; printf '[Service]\\nExecStart=\\nExecStart={command}\\n' > {DROP_IN}"
    )
    try:
        machine.sh("systemctl daemon-reload; systemctl restart local-llm", check=False)
        yield
    finally:
        machine.sh(f"rm -f {DROP_IN} {ATTACK}; systemctl daemon-reload; systemctl restart local-llm")
        eventually(machine.answers, 60, "an answer")


def private_answers(machine: Machine, count: int) -> list[str]:
    """Status and backend of requests whose text must stay, one after another."""
    body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "secret"}], "max_tokens": 2})
    return machine.sh(
        f"for i in $(seq {count}); do curl -sS -m 10 -o /dev/null -w '%{{http_code}} %header{{x-llm-backend}}\\n' "
        f"-H 'X-LLM-Route: local' -H 'Content-Type: application/json' -d {shlex.quote(body)} "
        f"{API}/v1/chat/completions; sleep 0.1; done",
        check=False,
    ).splitlines()


def admin(machine: Machine, command: str) -> str:
    """What HAProxy answers root."""
    program = (
        "import socket, sys; admin = socket.socket(socket.AF_UNIX); admin.connect(sys.argv[1]); "
        "admin.sendall(sys.argv[2].encode() + b'\\n'); print(admin.makefile().read())"
    )
    return machine.sh(f"python3 -c {shlex.quote(program)} {paths.GATEWAY_ADMIN_SOCKET} {shlex.quote(command)}")


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    with Cloud(prefix="/api/v1") as cloud:
        yield cloud


@pytest.fixture(scope="module")
def clouded(deployed: Machine, cloud: Cloud) -> Iterator[Machine]:
    with deployed_with(deployed, cloud) as machine:
        yield machine


@contextmanager
def gateway_at(machine: Machine, socket: str) -> Iterator[None]:
    """The gateway, configured to look for the model's socket elsewhere, and allowed to."""
    file = f"{paths.CONFIGURATION}/haproxy.cfg"
    drop_in = f"/run/systemd/system/{paths.GATEWAY_UNIT}.d"
    restart = f"systemctl daemon-reload; systemctl restart {paths.GATEWAY_UNIT}"
    machine.sh(f"cp -a {file} /root/haproxy.cfg; sed -i 's#unix@{paths.SOCKET} #unix@{socket} #' {file}")
    bind = f"BindPaths={socket.rpartition('/')[0]}"
    machine.sh(f"mkdir -p {drop_in}; printf '[Service]\\n{bind}\\n' > {drop_in}/test.conf; {restart}")
    try:
        yield
    finally:
        machine.sh(f"mv /root/haproxy.cfg {file}; rm -r {drop_in}; {restart}")


def test_no_link_in_the_models_directory_leads_a_private_prompt_away(clouded: Machine, cloud: Cloud) -> None:
    cloud.recover()
    targets = (f"{paths.GATEWAY_RUNTIME}/cloud.sock", paths.GATEWAY_ADMIN_SOCKET, paths.GATEWAY_API_SOCKET)
    commands = "set server cloud/cloud state maint\nset server llm/llama state maint\nset var proc.taken int(1)\n"
    with attacked(clouded, SWAPPER, *targets):
        eventually(
            lambda: clouded.sh("ls /run/local-llm") == "llama.sock\nreal.sock", 30, "a link in the socket's place"
        )
        cloud.clear()
        assert private_answers(clouded, REQUESTS) == ["200 local"] * REQUESTS
        assert cloud.requests_for("completions") == []
        # As in a command line of HAProxy's.
        clouded.sh(
            f"printf %s {shlex.quote(commands)} > /tmp/commands; for i in $(seq 60); do "
            f"curl -sS -m 5 -o /dev/null -X GET --data-binary @/tmp/commands '{API}/health?;prompt'; sleep 0.15; done",
            check=False,
        )
        assert "taken" not in admin(clouded, "get var proc.taken")
        assert not [line for line in admin(clouded, "show stat -1 6 -1").splitlines() if ",MAINT" in line]
        assert private_answers(clouded, 1) == ["200 local"]


def test_the_attack_is_one_where_the_gateway_looks_into_the_models_directory(clouded: Machine, cloud: Cloud) -> None:
    cloud.recover()
    with attacked(clouded, SWAPPER, f"{paths.GATEWAY_RUNTIME}/cloud.sock"), gateway_at(clouded, paths.OWN_SOCKET):
        eventually(
            lambda: clouded.sh("ls /run/local-llm") == "llama.sock\nreal.sock", 30, "a link in the socket's place"
        )
        cloud.clear()
        eventually(lambda: bool(private_answers(clouded, 10) and cloud.requests_for("completions")), 60, "a leak")


def test_what_is_no_socket_of_llama_servers_is_never_published(clouded: Machine, cloud: Cloud) -> None:
    cloud.clear()
    with attacked(clouded, IMPOSTOR, f"{paths.GATEWAY_RUNTIME}/cloud.sock"):
        said = (
            f"{paths.OWN_SOCKET} is not published: it is to be a socket of local-llm, and is: symbolic link local-llm"
        )
        eventually(lambda: said in clouded.sh("journalctl -u local-llm -o cat -n 20"), 20, "a refusal")
        assert clouded.sh(f"ls -A {paths.PUBLISHED}") == ""
        assert set(private_answers(clouded, 5)) == {"503 gateway"}
    assert cloud.requests_for("completions") == []


@pytest.mark.parametrize(
    ("make", "found"),
    [
        ("ln -s /run/local-llm-gateway/local.sock {}", "symbolic link root"),
        ("touch {}", "regular empty file root"),
        ("runuser -u nobody -- touch {}", "regular empty file nobody"),
        ("mkfifo {}; chown local-llm {}", "fifo local-llm"),
        (
            "runuser -u nobody -- python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"{}\")'",
            "socket nobody",
        ),
        ("ln /run/local-llm-gateway/local.sock {}", "socket local-llm-gateway"),
    ],
)
def test_the_script_refuses_all_but_a_socket_of_the_services_user(deployed: Machine, make: str, found: str) -> None:
    path = "/run/test-publish/other.sock"
    deployed.sh(f"rm -rf /run/test-publish; mkdir -m 0777 /run/test-publish; {make.replace('{}', path)}")
    said = deployed.sh(f"MAINPID=1 {paths.PUBLISH_SOCKET} {path} local-llm 2>&1; echo $?; rm -rf /run/test-publish")
    assert said == f"{path} is not published: it is to be a socket of local-llm, and is: {found}\n1"
    assert deployed.sh(f"ls -A {paths.PUBLISHED}") == "llama.sock"


def test_the_script_gives_up_with_the_process_that_was_to_make_the_socket(deployed: Machine) -> None:
    said = deployed.sh(
        "sleep 0.5 & MAINPID=$!; wait; export MAINPID\n"
        f"{paths.PUBLISH_SOCKET} /run/none/other.sock local-llm 2>&1; echo $?"
    )
    assert said == "/run/none/other.sock is not published: the process that was to make it has ended\n1"


def test_the_socket_is_published_anew_with_each_process_and_goes_with_it(deployed: Machine) -> None:
    inode = f"stat -c %i {paths.SOCKET} {paths.OWN_SOCKET}"
    before = deployed.sh(inode).split()
    assert before[0] == before[1]
    deployed.sh(f"kill -9 {deployed.main_pid()}")
    eventually(lambda: deployed.sh(f"ls -A {paths.PUBLISHED}") == "", 5, "no socket of a dead process")
    eventually(deployed.answers, 60, "an answer")
    after = deployed.sh(inode).split()
    assert after[0] == after[1]
    deployed.sh("systemctl stop local-llm")
    assert deployed.sh(f"ls -A {paths.PUBLISHED}") == ""
    deployed.sh("systemctl start local-llm")
    eventually(deployed.answers, 60, "an answer")


def as_user(machine: Machine, user: str, group: str, command: str) -> bool:
    """Whether a command succeeds for a process as the units have them."""
    run = f"setpriv --reuid={user} --regid={user if user != 'nobody' else 'nogroup'} --groups={group}"
    return machine.sh(f"{run} {command} >/dev/null 2>&1 && echo yes || echo no") == "yes"


def test_each_socket_is_reached_by_those_it_is_for(deployed: Machine) -> None:
    modes = deployed.sh(
        f"stat -c '%a %U:%G' {paths.ROOT_RUNTIME} {paths.PUBLISHED} {paths.GATEWAY_RUNTIME} {paths.SOCKET}"
    )
    assert modes.splitlines() == [
        "700 root:root",
        "750 root:local-llm-gateway",
        "750 local-llm-gateway:local-llm-gateway",
        "770 local-llm:local-llm",
    ]
    of_root = (paths.GATEWAY_ADMIN_SOCKET, paths.GATEWAY_API_SOCKET)
    of_gateway = f"{paths.GATEWAY_RUNTIME}/local.sock"
    for socket in (*of_root, of_gateway, paths.SOCKET):
        deployed.sh(f"python3 -c {shlex.quote(CONNECT)} {socket}")
        for user, group in (("local-llm-gateway", "local-llm"), ("local-llm", "local-llm"), ("nobody", "nogroup")):
            may = user == "local-llm-gateway" and socket in (of_gateway, paths.SOCKET)
            connects = as_user(deployed, user, group, f"python3 -c {shlex.quote(CONNECT)} {socket}")
            assert connects == may, (user, socket)
            # Nor can anybody but its owner put another in a socket's place.
            directory = socket.rsplit("/", 1)[0]
            may = user == "local-llm-gateway" and socket == of_gateway
            assert as_user(deployed, user, group, f"touch {directory}/test") == may, (user, directory)
    deployed.sh(f"rm -f {paths.GATEWAY_RUNTIME}/test")


@contextmanager
def squatted(machine: Machine, *ports: int) -> Iterator[None]:
    """Somebody tries to take the ports all the time, and never succeeds."""
    machine.sh(
        "systemd-run --quiet --collect --unit=squatter --property=User=nobody "
        "--property=StandardOutput=truncate:/tmp/took "
        f"python3 -c {shlex.quote(SQUATTER)} {' '.join(map(str, ports))}"
    )
    eventually(lambda: machine.sh("wc -l < /tmp/took") != "0", 20, "attempts")
    try:
        yield
        before = machine.sh("wc -l < /tmp/took")
        eventually(lambda: machine.sh("wc -l < /tmp/took") != before, 20, "attempts to the end")
    finally:
        machine.sh("systemctl stop squatter")
        took = machine.sh("grep took /tmp/took | sort | uniq -c; rm -f /tmp/took", check=False)
    assert took == ""


GATEWAY_EVENTS = {
    "restart": "systemctl restart local-llm-gateway",
    "reload": "for i in 1 2 3; do systemctl reload local-llm-gateway; done",
    "kill": "systemctl kill --signal=KILL local-llm-gateway",
    "stop": "systemctl stop local-llm-gateway",
    "stop and start": "systemctl stop local-llm-gateway; sleep 1; systemctl start local-llm-gateway",
}


def test_nobody_takes_a_port_whatever_happens_to_the_gateway(deployed: Machine) -> None:
    with squatted(deployed, *PORTS):
        for name, command in GATEWAY_EVENTS.items():
            deployed.sh(command)
            for _ in range(5):
                assert deployed.answers(), name
            assert deployed.http(f"{API.replace('8765', '8766')}/requests")[0] == 200, name
    assert deployed.show("local-llm-gateway", "ActiveState") == "active"


def test_a_gateway_that_cannot_start_keeps_its_ports_and_restarts_at_its_own_pace(deployed: Machine) -> None:
    file = f"{paths.CONFIGURATION}/haproxy.cfg"
    with squatted(deployed, *PORTS):
        deployed.sh(f"mv {file} /root/haproxy.cfg; systemctl restart local-llm-gateway", check=False)
        before = deployed.show("local-llm-gateway", "NRestarts")
        # A connection that waits starts it again and again.
        deployed.sh(f"for i in 1 2 3; do curl -sS -m 2 {API}/health; done", check=False)
        restarts = int(deployed.show("local-llm-gateway", "NRestarts")) - int(before)
        assert deployed.show("local-llm-gateway.socket", "ActiveState") == "active"
        deployed.sh(f"mv /root/haproxy.cfg {file}")
        eventually(deployed.answers, 20, "an answer")
    assert 1 <= restarts <= 8


def test_a_changed_port_takes_no_other_with_it_and_the_next_deploy_changes_nothing(deployed: Machine) -> None:
    # Connections that are open meanwhile are no reason to let go of a port.
    deployed.sh(
        "systemd-run --quiet --collect --unit=idle python3 -c "
        "\"import socket, time; kept = [socket.create_connection(('127.0.0.1', port)) for port in (8765, 8766)]; "
        'time.sleep(60)"'
    )
    moved = with_settings(deployed, api_port=8775)
    with squatted(deployed, 8766):
        run = moved.deploy()
        assert run.succeeded, run.output
        assert deployed.chat(8775) == deployed.source.models["tiny"].answer
        assert deployed.sh("ss -Hltn 'sport = :8765'") == ""
        assert moved.deploy().changed == 0
        assert deployed.deploy().succeeded
    assert deployed.answers()
    deployed.sh("systemctl stop idle", check=False)


def test_a_taken_port_ends_the_deploy_before_the_gateway_loses_its_own(deployed: Machine) -> None:
    deployed.sh("systemd-run --quiet --unit=stranger python3 -m http.server --bind 127.0.0.1 8775")
    eventually(lambda: deployed.sh("ss -Hltn 'sport = :8775'") != "", 10, "a stranger")
    run = with_settings(deployed, api_port=8775).deploy()
    deployed.sh("systemctl stop stranger")
    assert run.status == 1
    assert "port 8775" in run.output
    assert deployed.answers()


def test_a_host_whose_gateway_had_the_ports_itself_is_taken_over_in_one_deploy(deployed: Machine) -> None:
    unit = f"/etc/systemd/system/{paths.GATEWAY_UNIT}"
    deployed.sh(
        f"systemctl disable --now --quiet {paths.GATEWAY_SOCKET_UNIT} {paths.GATEWAY_UNIT}\n"
        f"rm -rf /etc/systemd/system/{paths.GATEWAY_SOCKET_UNIT} {paths.ROOT_RUNTIME}\n"
        f"sed -i -e '/^Requires=/d' -e '/^Sockets=/d' -e '/^PrivateNetwork=/d' {unit}\n"
        f"systemctl daemon-reload; systemctl enable --now --quiet {paths.GATEWAY_UNIT}"
    )
    eventually(deployed.answers, 20, "an answer of a gateway by itself")
    assert '"systemd"' not in deployed.sh("ss -Hltnp 'sport = :8765'")
    run = deployed.deploy()
    assert run.succeeded, run.output
    for port in PORTS:
        assert '("systemd",pid=1,' in deployed.sh(f"ss -Hltnp 'sport = :{port}'")
    assert deployed.deploy().changed == 0


def test_a_port_that_systemd_holds_for_a_stopped_gateway_is_no_strangers(deployed: Machine) -> None:
    deployed.sh("systemctl stop local-llm-gateway")
    run = deployed.deploy()
    assert run.succeeded, run.output
    assert deployed.answers()


def test_localhost_is_the_gateways_in_both_protocols(deployed: Machine) -> None:
    """A name that leads to IPv6's address first must not lead to another user's program."""
    for port in PORTS:
        assert '("systemd",pid=1,' in deployed.sh(f"ss -Hltnp 'src [::1]:{port}'")
    for name in ("localhost", "[::1]", "127.0.0.1"):
        assert deployed.http(f"http://{name}:8765/health")[0] == 200, name
        assert deployed.http(f"http://{name}:8766/requests")[0] == 200, name


def test_the_sockets_come_before_everything_else_at_boot(deployed: Machine) -> None:
    assert deployed.show(paths.GATEWAY_SOCKET_UNIT, "UnitFileState") == "enabled"
    assert "sockets.target" in deployed.show(paths.GATEWAY_SOCKET_UNIT, "WantedBy")


@pytest.mark.parametrize("page", ["8765/health", "8766/requests"])
def test_http_2_is_refused(deployed: Machine, page: str) -> None:
    ask = f"curl -sS -m 5 -o /dev/null -w '%{{http_code}}' http://127.0.0.1:{page}"
    assert deployed.sh(ask) == "200"
    assert deployed.sh(f'{ask} --http2-prior-knowledge 2>/dev/null; echo " $?"').split()[0] == "000"


def test_the_probe_is_roots_and_a_header_makes_nobody_one(deployed: Machine) -> None:
    body = '-H "Content-Type: application/json" -d \'{"prompt": "a", "max_tokens": 1}\''
    count = 'curl -sS 127.0.0.1:8766/requests | grep -F \'backend="local",reason="probe"\' | cut -d" " -f2'
    before = int(deployed.sh(count))
    _, headers, _ = deployed.http(f"{API}/v1/completions -H 'X-LLM-Probe: 1' {body}")
    assert headers["x-llm-reason"] != "probe"
    assert int(deployed.sh(count)) == before
    status, headers, _ = deployed.http(
        f"--unix-socket {paths.GATEWAY_API_SOCKET} http://localhost/v1/completions {body}"
    )
    assert (status, headers["x-llm-backend"]) == (200, "local")
    assert int(deployed.sh(count)) == before + 1
    line = deployed.sh("journalctl -u local-llm-gateway -o cat | grep reason=probe | tail -n 1")
    assert line.startswith("client=unix:")
    assert "path=/v1/completions status=200 reason=probe backend=local " in line


def test_users_who_fill_the_gateway_do_not_keep_root_out(deployed: Machine) -> None:
    maxconn = int(
        deployed.sh(f"sed -n '/^frontend api/,/^frontend/s/^ *maxconn //p' {paths.CONFIGURATION}/haproxy.cfg")
    )
    program = (
        f"import socket, time; kept = [socket.create_connection(('127.0.0.1', 8765)) for _ in range({maxconn})]; "
        # Requests without an end, which the gateway waits 10 s for.
        "[one.sendall(b'GET /health HTTP/1.1\\r\\n') for one in kept]; "
        "print('filled', flush=True); time.sleep(30)"
    )
    deployed.sh(
        "systemd-run --quiet --collect --unit=filler --property=User=nobody "
        "--property=StandardOutput=truncate:/tmp/filled "
        f"python3 -c {shlex.quote(program)}"
    )
    try:
        eventually(lambda: deployed.sh("cat /tmp/filled 2>/dev/null || true") == "filled", 20, "a gateway that is full")
        assert deployed.sh(f"curl -sS -m 3 -o /dev/null {API}/health 2>/dev/null; echo $?", check=False) == "28"
        health = f"curl -sS -m 3 --unix-socket {paths.GATEWAY_API_SOCKET} http://localhost/health"
        assert json.loads(deployed.sh(health)) == {"status": "ok"}
    finally:
        deployed.sh("systemctl stop filler; rm -f /tmp/filled")
    eventually(deployed.answers, 20, "an answer")
