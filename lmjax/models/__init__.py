"""The Transformer: configurations, modules, and the zoo of published shapes. The only home of Flax modules."""
