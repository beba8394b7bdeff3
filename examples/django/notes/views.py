"""GET /notes tells the notes and the port of the server that read them; POST adds one first."""

from django.db.models import Func, IntegerField
from django.http import HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_http_methods

from notes.models import Note


@csrf_exempt
@require_http_methods(["GET", "POST"])
def notes(request: HttpRequest) -> JsonResponse:
    if request.method == "POST":
        Note.objects.create(text=request.body.decode()[:200])
    port = Func(function="inet_server_port", output_field=IntegerField())
    rows = list(Note.objects.order_by("id").values_list("text", port))
    return JsonResponse({"notes": [text for text, _ in rows], "from": rows[0][1] if rows else None})
