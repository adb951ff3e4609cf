#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Asks a Prometheus every query of the Grafana dashboard and of the alert rules, and fails where one
returns no data, or only NaN. A rule is asked without its threshold: each side of `and`, up to the
comparison with a number.

    docker/check/queries.py http://127.0.0.1:9090
"""

import json
import math
import pathlib
import re
import sys
import urllib.parse
import urllib.request

DOCKER = pathlib.Path(__file__).resolve().parents[1]
VARIABLES = {"$__rate_interval": "20s", "$instance": ".*"}


def dashboard_queries():
    board = json.loads((DOCKER / "grafana/dashboards/kivi.json").read_text())
    for variable in board["templating"]["list"]:
        metric, label = re.fullmatch(r"label_values\((.*), (\w+)\)",
                                     variable["query"]["query"]).groups()
        yield f"variable {variable['name']}", f"count by ({label}) ({metric})"
    for panel in board["panels"]:
        for target in panel["targets"]:
            query = target["expr"]
            for name, value in VARIABLES.items():
                query = query.replace(name, value)
            if "$" in query:
                sys.exit(f"{panel['title']}: a variable that this test does not know: {query}")
            yield f"panel \"{panel['title']}\"", query


def split_alert(expression):
    """The vectors that an alert compares: 'a > 0 and on (instance) b == 0' -> a, b."""
    for part in re.split(r"\sand(?:\s+on\s*\([^)]*\))?\s", expression):
        vector, number = re.fullmatch(r"(.*?)\s(?:>|<|==)=?\s([\d.]+)\s*", part, re.DOTALL).groups()
        yield vector, float(number)


def rule_queries(prometheus):
    reply = ask(prometheus, "/api/v1/rules")
    for group in reply["groups"]:
        for rule in group["rules"]:
            if rule["health"] == "err":
                sys.exit(f"alert {rule['name']}: {rule['lastError']}")
            for vector, _ in split_alert(rule["query"]):
                yield f"alert {rule['name']}", vector


def ask(prometheus, path, **parameters):
    url = prometheus + path + "?" + urllib.parse.urlencode(parameters)
    try:
        with urllib.request.urlopen(url, timeout=30) as reply:
            return json.load(reply)["data"]
    except urllib.error.HTTPError as e:
        sys.exit(f"{parameters.get('query')}: {e.read().decode()}")


def main():
    prometheus = sys.argv[1].rstrip("/")
    assert list(split_alert("a > 0 and on (x) b{c=~\"d\"} == 0.5")) == [
        ("a", 0), ('b{c=~"d"}', 0.5)]
    queries = [*dashboard_queries(), *rule_queries(prometheus)]
    without = []
    for where, query in queries:
        values = [float(row["value"][1])
                  for row in ask(prometheus, "/api/v1/query", query=query)["result"]]
        if not any(not math.isnan(value) for value in values):
            without.append(f"{where}: no data: {query}")
    print("\n".join(without))
    print(f"{len(queries)} queries, {len(without)} without data")
    return 1 if without or len(queries) < 30 else 0


if __name__ == "__main__":
    sys.exit(main())
