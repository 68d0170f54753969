"""Tests: house rules, pure units, properties, contracts over fakes and real servers, integration, benchmarks."""
