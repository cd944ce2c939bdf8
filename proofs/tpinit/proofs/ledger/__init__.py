"""The ledger: what is proven, by what, from what, and what each part is needed for; as JSON and as a page."""
