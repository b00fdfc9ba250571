"""The resumable job that fills a store."""
