"""Objects of messages that travel with flwr's own calls, instead of a call for each.

flwr sends a message bare, then every object that it is made of: for our orders and answers, of three small
objects each, nine calls where two do. Who reads protobuf passes over fields that it does not know, so the
objects go as further fields of flwr's messages: on a request that pushes, and on the answer to one that pulls
and says that it ``wants`` them. Nodes and SuperLinks of flwr's see none of it, and go on asking one by one;
so do ours for whatever has not come.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

LARGEST_BYTES = 1 << 16  # of one message's objects: more is asked for one by one

_FIRST_FIELD = 1000  # far above flwr's own


@cache
def _form() -> Any:
    """The protobuf class of what is carried; read from the same bytes as flwr's message."""
    from flwr.proto.message_pb2 import PushObjectRequest
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    element = PushObjectRequest.DESCRIPTOR
    file = descriptor_pb2.FileDescriptorProto(
        name="fedhub/carried.proto", package="fedhub", syntax="proto3", dependency=[element.file.name]
    )
    made = file.message_type.add(name="Carried")
    made.field.add(
        name="objects",
        number=_FIRST_FIELD,
        type=field.TYPE_MESSAGE,
        type_name=f".{element.full_name}",
        label=field.LABEL_REPEATED,
    )
    made.field.add(name="wants", number=_FIRST_FIELD + 1, type=field.TYPE_BOOL, label=field.LABEL_OPTIONAL)
    pool = descriptor_pool.Default()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("fedhub.Carried"))


def want(request: Any) -> Any:
    """The same request to pull messages, which wants their objects too."""
    request.MergeFromString(_form()(wants=True).SerializeToString())
    return request


def wants(request: Any) -> bool:
    """Whether objects are to travel with the answer to this request."""
    return bool(_form().FromString(request.SerializeToString()).wants)


def add(message: Any, objects: Mapping[str, bytes]) -> None:
    """Let objects, by their ids, travel with a request or an answer."""
    listed = [{"object_id": name, "object_content": content} for name, content in objects.items()]
    message.MergeFromString(_form()(objects=listed).SerializeToString())


def objects_of(message: Any) -> dict[str, bytes]:
    """The objects that travel with a request or an answer, by their ids."""
    found = _form().FromString(message.SerializeToString()).objects
    return {one.object_id: one.object_content for one in found}


# --- the two sides of a message -----------------------------------------------------------------------------


def take_apart(message: Any) -> tuple[Any, Any, dict[str, bytes]]:
    """A message as flwr sends it: the bare message, its tree, and its objects, parts before the whole."""
    from flwr.app.message import remove_content_from_message
    from flwr.common.serde import message_to_proto
    from flwr.supercore.inflatable.inflatable_object import (
        get_all_nested_objects,
        get_object_tree,
        no_object_id_recompute,
    )

    with no_object_id_recompute():
        message.metadata.__dict__["_message_id"] = message.object_id
        bare = remove_content_from_message(message) if message.has_content() else message
        objects = {name: one.deflate() for name, one in get_all_nested_objects(message).items()}
        return message_to_proto(bare), get_object_tree(message), objects


def names_in(tree: Any) -> list[str]:
    """The ids of all objects that a message is made of."""
    from flwr.supercore.inflatable.inflatable_object import iterate_object_tree

    return [node.object_id for node in iterate_object_tree(tree)]


def put_together(tree: Any, contents: dict[str, bytes]) -> Any:
    """The message that objects make."""
    from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

    message: Any = inflate_object_from_contents(tree.object_id, contents)
    message.metadata.__dict__["_message_id"] = tree.object_id
    return message


def pull_missing(names: Iterable[str], pull: Callable[[str], bytes]) -> dict[str, bytes]:
    """Objects asked for one by one, in flwr's way but without its long pauses for what has yet to arrive.

    Raises:
        ObjectPullError: flwr's: one is not there, and does not come.
    """
    from flwr.supercore.inflatable.inflatable_utils import pull_objects

    return dict(pull_objects(list(names), pull, initial_backoff=0.02, backoff_cap=0.5))
