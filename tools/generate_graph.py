"""Write safety/scenarios/graph.json: every reachable state of the safety core for small parameters."""

import json

from tests.unit.test_safety_core import GRAPH, SMALL, enumerate_graph
from vigil_safety.core import load_table
from vigil_safety.table import machine_source

GRAPH.write_text(json.dumps(enumerate_graph(load_table(machine_source(), SMALL)), indent=1, sort_keys=True) + "\n")
