"""A feature service from another machine: `embedcache.connect`, and what stands behind it.

    RemoteStore ─▶ RemoteReader ─▶ FeatureCache
         └────────────┴──▶ Connection ─▶ `embedcache serve`

The only room that imports the HTTP client's library, and only when the first request is made.
Keys go over the wire; texts leave the machine only to be embedded or predicted.
"""
