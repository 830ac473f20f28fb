"""LoRA weights as values: what they are, how files of them are checked, and how they go to and come from PEFT."""
