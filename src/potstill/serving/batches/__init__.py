"""Files of requests in, files of answers out, worked on while nobody else asks: OpenAI's files and batches."""
