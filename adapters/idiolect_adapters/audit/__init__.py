"""The audit: attacks on the shipped mechanisms that must fail, and on broken ones that must succeed.

bounds           from an attack's hits to a lower bound on epsilon, with confidence
canary           what a canary and an audited mechanism are
user_canaries    worst-case neighbouring data for user adapters (unit: one comparison)
domain_canaries  the same for domain adapters (unit: one subject)
lora_canaries    the same against the steps of inner-layer LoRA
global_canaries  the same for a private global model (unit: one subject)
structure        what a release may hold and what a training may touch
run              the whole audit of one mechanism, as one report
membership       membership inference on adapters of ordinary data
faults           broken mechanisms, planted to test the audit; nothing that ships imports them
"""
