from typing import Any
def page(data: dict[str, Any]) -> str: return "<html></html>"
