"""An LSTM that spells the opposite of a word: letter by letter, the likeliest words, and some drawn at random."""

import statestream

with statestream.local("deploy/models/antonyms") as client:
    for letter in client.generate_steps("antonyms", "king"):
        print(letter, end="", flush=True)  # As they are made.
    print()
    for word in client.generate("antonyms", ["up", "black", "hot"]):  # Together.
        print(f"{word} ({word.log_prob:.2f})")
    best = client.generate("antonyms", "king", num_beams=4, n_best=2)
    print(" before ".join(best))
    drawn = client.generate("antonyms", "king", num_samples=5, temperature=2.0, seed=7)
    print(*drawn)
