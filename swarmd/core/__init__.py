"""The pure core: events, the fold, the leader's decisions. No I/O, no clock, no randomness, no asyncio."""
