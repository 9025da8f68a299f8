"""MSR-VTT: which of many short videos a sentence is about."""
