"""A client's request: checked, made into token ids, sent, and its tokens made into text again."""
