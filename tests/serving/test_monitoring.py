import json
import pathlib
import re
import shutil
import subprocess

import pytest
import yaml

SERVING = pathlib.Path(__file__).resolve().parents[2] / "serving"
PROMETHEUS = SERVING / "prometheus"
METRIC = re.compile(r"(?<![\w:]):tensorflow:[a-zA-Z0-9_:]+|\bup\b")
SELECTOR = re.compile(r"(:tensorflow:[a-zA-Z0-9_:]+|\bup\b)\{([^}]*)\}")
SCRAPED = {"job", "instance"}  # labels that Prometheus adds

promtool = pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="promtool is not on the PATH: apt-get install --no-install-recommends prometheus",
)


def read(path):
    return yaml.safe_load((SERVING / path).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def metrics():
    """Name as it stands in expressions → labels."""
    known = {}
    for name, metric in read("prometheus/metrics.yaml").items():
        suffixes = ["_bucket", "_sum", "_count"] if metric["type"] == "histogram" else [""]
        for suffix in suffixes:
            known[name + suffix] = {*metric["labels"], *SCRAPED, *(["le"] if suffix == "_bucket" else [])}
    return known


def rules():
    return [rule for group in read("prometheus/alerts.yaml")["groups"] for rule in group["rules"]]


def dashboard():
    return json.loads((SERVING / "grafana" / "dashboard.json").read_text(encoding="utf-8"))


def expressions():
    found = [(rule["alert"], rule["expr"]) for rule in rules()]
    return found + [(p["title"], target["expr"]) for p in dashboard()["panels"] for target in p["targets"]]


@pytest.mark.parametrize("owner, expression", expressions())
def test_expressions_read_metrics_that_exist(metrics, owner, expression):
    names = METRIC.findall(expression)
    assert names and set(names) <= set(metrics)
    for name, selector in SELECTOR.findall(expression):
        assert set(re.findall(r"(\w+)\s*[=!]", selector)) <= metrics[name]
    grouped = {label for labels in re.findall(r"by \(([^)]*)\)", expression) for label in re.split(r",\s*", labels)}
    assert grouped <= set.union(*(metrics[name] for name in names))


def test_every_histogram_is_read_by_its_parts(metrics):
    """The check above knows a name that is none."""
    assert ":tensorflow:serving:request_latency" not in metrics
    assert ":tensorflow:serving:request_latency_bucket" in metrics


def test_every_known_metric_is_in_use(metrics):
    used = {name for _, expression in expressions() for name in METRIC.findall(expression)}
    for name in read("prometheus/metrics.yaml"):
        assert any(found.startswith(name) for found in used), name


def test_alerts_say_what_to_do():
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert set(rule["annotations"]) == {"summary", "action"}


def test_every_alert_has_a_test_that_fires_and_one_that_does_not():
    cases = [case for test in read("prometheus/alerts_test.yaml")["tests"] for case in test["alert_rule_test"]]
    for rule in rules():
        expected = [bool(case.get("exp_alerts")) for case in cases if case["alertname"] == rule["alert"]]
        assert set(expected) == {True, False}, rule["alert"]


def test_the_scrape_is_of_the_server_in_compose():
    [scrape] = read("prometheus/prometheus.yaml")["scrape_configs"]
    assert scrape["metrics_path"] in (SERVING / "monitoring.config").read_text()
    assert f'job="{scrape["job_name"]}"' in rules()[0]["expr"]
    [target] = scrape["static_configs"][0]["targets"]
    service, port = target.split(":")
    compose = read("compose.yaml")["services"]
    assert f"--rest_api_port={port}" in compose[service]["command"]
    assert compose["server-gpu"]["networks"]["default"]["aliases"] == [service]


def test_the_dashboard_is_complete():
    board = dashboard()
    identities = [panel["id"] for panel in board["panels"]]
    assert len(set(identities)) == len(identities)
    for panel in board["panels"]:
        assert panel["title"] and panel["description"] and panel["fieldConfig"]["defaults"]["unit"]
        position = panel["gridPos"]
        assert position["x"] + position["w"] <= 24
        assert {target["refId"] for target in panel["targets"]} == set("ABCDEF"[: len(panel["targets"])])
    variables = {variable["name"] for variable in board["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(board))) - {"__all", "__rate_interval"}
    assert used == variables


def test_grafana_is_given_its_source_and_its_dashboard():
    [source] = read("grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    assert source["url"] == "http://prometheus:9090" and "prometheus" in read("compose.yaml")["services"]
    [provider] = read("grafana/provisioning/dashboards/tfgpt.yaml")["providers"]
    mounts = read("compose.yaml")["services"]["grafana"]["volumes"]
    assert any(f":{provider['options']['path']}/" in mount for mount in mounts)


def run_promtool(folder, *arguments):
    return subprocess.run(["promtool", *arguments], cwd=folder, capture_output=True, text=True, timeout=60)


@promtool
@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "rules", "alerts.yaml"],
        ["check", "config", "prometheus.yaml"],
        ["test", "rules", "alerts_test.yaml"],
    ],
)
def test_promtool(arguments):
    run = run_promtool(PROMETHEUS, *arguments)
    assert run.returncode == 0, run.stdout + run.stderr


@promtool
@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_a_rule_that_never_fires_fails_its_test(tmp_path, rule):
    groups = read("prometheus/alerts.yaml")
    for group in groups["groups"]:
        for other in group["rules"]:
            if other["alert"] == rule["alert"]:
                other["expr"] = "vector(1) > 2"
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump(groups))
    shutil.copy(PROMETHEUS / "alerts_test.yaml", tmp_path)
    assert run_promtool(tmp_path, "test", "rules", "alerts_test.yaml").returncode != 0


@promtool
def test_promtool_reads_the_dashboard(tmp_path):
    """Its expressions parse, with Grafana's variables filled in."""
    filled = [
        {"record": f"panel:{number}", "expr": expression.replace("$__rate_interval", "5m")}
        for number, (_, expression) in enumerate(expressions())
    ]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": filled}]}))
    run = run_promtool(tmp_path, "check", "rules", "rules.yaml")
    assert run.returncode == 0, run.stdout + run.stderr
