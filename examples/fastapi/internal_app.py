"""The internal application: tells which copy of it has answered."""

from fastapi import FastAPI, Request

app = FastAPI(title="Internal application")


@app.get("/getInfo")
async def get_info(request: Request) -> dict[str, str]:
    """The message, and the port that this copy runs on."""
    _, port = request.scope["server"]  # of the connection, so a copy needs no setting to know it
    return {"message": "necessary info", "port": str(port)}
