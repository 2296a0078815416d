"""Looking after a store: verifying, mending, compacting, collecting, forgetting, copying."""
