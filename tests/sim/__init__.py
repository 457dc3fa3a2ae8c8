"""The seeded simulation: the real core under a virtual clock, a faulty log, a faulty bus and dying processes."""
