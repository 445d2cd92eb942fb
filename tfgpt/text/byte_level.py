"""GPT-2's characters for bytes, in which byte-level vocabularies are written."""

from tokenizers import pre_tokenizers


def byte_of_character():
    """GPT-2's printable character for each byte: dict from characters to bytes (`bytes_to_unicode` in its code)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # Bytes that are printable in Latin-1 stand for themselves, the others follow from U+0100 on in order.
    itself = {character: ord(character) for character in alphabet if ord(character) < 0x100}
    others = [byte for byte in range(0x100) if byte not in itself.values()]
    return itself | dict(zip((character for character in alphabet if ord(character) >= 0x100), others))


def token_bytes(token, byte_of):
    """What a token decodes to: by GPT-2's characters if it has no others, else, as special tokens may, its text."""
    if all(character in byte_of for character in token):
        return bytes(byte_of[character] for character in token)
    return token.encode()
