"""The prompts of the three captioners, worded as the published ones are asked."""

INSTRUCTION = "Describe the image in detail."
PROMPTS = {
    "instructblip": INSTRUCTION,
    "llava": f"USER: <image>\n{INSTRUCTION} ASSISTANT:",
    "sharegpt4v": (
        "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
        f"detailed, and polite answers to the human's questions. USER: <image>\n{INSTRUCTION} ASSISTANT:"
    ),
}
