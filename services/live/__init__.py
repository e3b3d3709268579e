"""The live page, `GET /dashboard`: what it shows, and the stream that it is kept up to date by."""
