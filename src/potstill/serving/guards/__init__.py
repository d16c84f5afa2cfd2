"""What is asked of a text before the model sees it and before the client sees an answer.

injection   a scored screen for prompt injections and jailbreaks: words, their order, and what they hide behind
personal    personal data blocked, replaced by placeholders, or let through, a kind at a time; put back on request
toxicity    the probability that a text is abusive, by a small linear model that comes in a package
blocklist   words and patterns, matched in linear time
windows     the same filters over a stream, holding back only what a match can still need
"""
