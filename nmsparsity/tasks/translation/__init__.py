"""Machine translation: pairs of sentences, an encoder-decoder Transformer, beam search, BLEU."""
