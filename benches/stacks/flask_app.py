"""The Flask app of the comparison, for gunicorn: a small JSON answer."""

from flask import Flask, jsonify, request

app = Flask(__name__)


@app.get("/")
def index():
    return jsonify(message="Hello, World!", path=request.path)
