"""One paragraph of text for each photograph: from a .txt file beside it, or from a vision model behind HTTP.

caption_pass   which of the two
sidecar        the .txt file
server_pass    the vision model: many requests at once, and when to give up
asking         one image: tries, waits, another seed
protocols      what is sent to Ollama and to an OpenAI-compatible server, and what comes back
wire           one HTTP exchange
address        which addresses and keys are taken
answers        whether an answer is a caption
prompt         what the model is asked for
"""
