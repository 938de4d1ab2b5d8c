"""A web page around a trained model: drop a photo, see it restored and which prompts were chosen.

session  what happens to one photo; knows nothing of the page
panels   what is shown of it, as HTML
page     the page itself (gradio)
guard    what is refused before the page sees it
sweep    old files deleted
server   where it listens, and how it ends
"""
