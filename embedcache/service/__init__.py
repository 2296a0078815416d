"""The feature-store service: stored features, read-through misses and predictions over HTTP.

    request → middleware (key, limits, deadline) → route → FeatureService → index and shards
                                                              └─ misses → compute worker → store

The only room that imports the web framework. The server's process imports neither TensorFlow
nor Keras: the module is loaded in one child process, at the first miss, and the models of
runs in another, at the first prediction.
"""
