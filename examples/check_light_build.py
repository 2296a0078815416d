"""Show that a build in which every text hits leaves TensorFlow and Keras unloaded."""

import os
import sys

import embedcache

with embedcache.open_store(os.environ["STORE"]) as store:
    report = embedcache.build(store, "examples/helpdesk.txt")

loaded = sorted({"tensorflow", "keras"} & set(sys.modules))
print(f"\nagain in Python: {report.hits} hits, {report.misses} misses;", end=" ")
print(f"loaded: {', '.join(loaded)}" if loaded else "TensorFlow and Keras were not loaded")
sys.exit(1 if loaded or report.misses else 0)
