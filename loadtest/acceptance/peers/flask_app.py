"""A Flask application with sessions, as gunicorn serves it: who logs in is known by a signed cookie beside another one."""
from flask import Flask, make_response, request, session

app = Flask(__name__)
app.secret_key = "known to nobody but this test"


@app.post("/login")
def login():
    session["user"] = request.form["user"]
    answer = make_response("welcome\n")
    answer.set_cookie("csrftoken", "x1y2z3")
    return answer


@app.get("/whoami")
def whoami():
    return f"{session.get('user', 'nobody')} {request.cookies.get('csrftoken', 'none')}\n"
