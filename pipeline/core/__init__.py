"""What every stage uses: Ray tasks, the ledger, scratch space, outcomes."""
