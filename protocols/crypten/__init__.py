"""The protocols of the suite `crypten`, built from CrypTen's Beaver products and a dealer's tape.

Everything here works on raw shares: int64 tensors in Z_2^64 with a public number of fraction bits. Each function takes the
`CryptenSession` first, is synchronous, and runs alike at a party, at the dealer and in an estimate (see
`protocols.crypten.binding.session`). Bytes in docstrings are what one party sends to one peer.
"""

import protocols.crypten.binding.library  # noqa: F401  (makes `import crypten` work in the modules of this package)
