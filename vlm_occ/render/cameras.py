"""The cameras with the answer's voxels and boxes drawn in."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vlm_occ.geometry import box_corners, invert_rigid, transform_points
from vlm_occ.render.files import REFERRED, shorten, whole_file
from vlm_occ.types import GroundingResult, Scene, VoxelGrid

PANELS = (
    ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT"),
    ("CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT"),
)
PANEL_WIDTH = 640  # pixels; drawn at twice that and reduced, which smooths the lines
_EDGES = ((0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7))
_FRONT = (0, 1, 5, 4)  # corners of the face at +x of a box


def draw_cameras(scene: Scene, result: GroundingResult, path: str | Path) -> None:
    """Draw the answer's voxels and boxes into the reference images: one PNG, front row first.

    A camera that sees part of the answer has a pink frame; a camera that the scene lacks is an empty panel.
    """
    rig = scene.rig
    if not rig.names:
        raise ValueError("the scene has no cameras to draw; draw_birds_eye needs none")
    known = {name for row in PANELS for name in row}
    names = list(rig.names)
    rows = PANELS if known.issuperset(names) else [tuple(names[i : i + 3]) for i in range(0, len(names), 3)]
    height = round(PANEL_WIDTH * rig.image_size[0] / rig.image_size[1])
    gap, header = 6, 74
    columns = max(len(row) for row in rows)
    size = (columns * (PANEL_WIDTH + gap) + gap, header + len(rows) * (height + gap))
    sheet = Image.new("RGB", size, (24, 27, 32))
    draw = ImageDraw.Draw(sheet)
    draw.text((gap + 8, 10), f"“{shorten(result.query, 120)}”", fill="white", font=_font(24))
    draw.text((gap + 8, 43), shorten(result.text, 130), fill=(190, 197, 208), font=_font(18))
    for row, row_names in enumerate(rows):
        for column, name in enumerate(row_names):
            if name in names:
                panel = draw_camera(scene, result, name).resize((PANEL_WIDTH, height), Image.Resampling.BOX)
            else:
                panel = Image.new("RGB", (PANEL_WIDTH, height), (44, 48, 56))
                text = f"{_title(name)}: not used"
                ImageDraw.Draw(panel).text((16, 12), text, fill="#8a93a0", font=_font(18))
            sheet.paste(panel, (gap + column * (PANEL_WIDTH + gap), header + row * (height + gap)))
    with whole_file(path) as temporary:
        sheet.save(temporary, format="PNG")


def draw_camera(scene: Scene, result: GroundingResult, name: str) -> Image.Image:
    """One camera's image at twice the width of a panel, with the answer drawn in."""
    view = scene.rig.names.index(name)
    image_height, image_width = scene.rig.image_size
    scale = 2 * PANEL_WIDTH / image_width
    size = (2 * PANEL_WIDTH, 2 * round(PANEL_WIDTH * image_height / image_width))
    pixels = scene.reference.images[view].permute(1, 2, 0).cpu().numpy()  # [H, W, 3]
    picture = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    intrinsics = scene.rig.intrinsics[view].cpu().float().clone()
    intrinsics[:2] *= scale
    camera_from_ego = invert_rigid(scene.rig.ego_from_camera[view].cpu().float())
    overlay = Image.new("RGBA", size, (0, 0, 0, 0))
    seen = False
    for item in result.objects:
        seen |= _paint_voxels(overlay, item.occupancy.cpu(), result.grid, camera_from_ego, intrinsics)
    overlay.putalpha(overlay.getchannel("A").point([alpha * 55 // 100 for alpha in range(256)]))
    picture.paste(overlay, (0, 0), overlay)
    draw = ImageDraw.Draw(picture)
    for number, item in enumerate(result.objects, start=1):
        box = item.box.detach().cpu().float()
        seen |= _draw_wireframe(draw, box, f"{number}  {item.score:.2f}", camera_from_ego, intrinsics, size)
    colour = REFERRED if seen else (24, 27, 32)
    font = _font(32)
    right = 40 + font.getlength(_title(name))
    draw.rounded_rectangle((14, 14, right, 62), radius=10, fill=colour)
    draw.text((26, 18), _title(name), fill="white", font=font)
    if seen:
        draw.rectangle((0, 0, size[0] - 1, size[1] - 1), outline=REFERRED, width=8)
    return picture


def visible_faces(occupancy: Tensor, grid: VoxelGrid) -> tuple[Tensor, Tensor]:
    """Outer faces of voxels, bool [X, Y, Z]: corners [F, 4, 3] (metres, ego frame) and normals [F, 3]."""
    padded = torch.nn.functional.pad(occupancy.bool(), (1, 1, 1, 1, 1, 1))
    corners, normals = [], []
    for axis in range(3):
        first, second = [other for other in range(3) if other != axis]
        for sign in (1, -1):
            bare = occupancy.bool() & ~padded.roll(-sign, axis)[1:-1, 1:-1, 1:-1]
            centre = grid.center_of(bare.nonzero())  # [F, 3]
            offset = torch.zeros(4, 3)
            offset[:, axis] = sign
            offset[:, first] = torch.tensor([1.0, 1, -1, -1])
            offset[:, second] = torch.tensor([1.0, -1, -1, 1])
            corners.append(centre[:, None] + offset * (grid.voxel_size / 2))
            normal = torch.zeros(3)
            normal[axis] = sign
            normals.append(normal.expand(len(centre), 3))
    return torch.cat(corners), torch.cat(normals)


def _paint_voxels(
    overlay: Image.Image, occupancy: Tensor, grid: VoxelGrid, camera_from_ego: Tensor, intrinsics: Tensor
) -> bool:
    """Paint the faces of voxels that look at the camera, far to near; whether any is in the picture."""
    corners, normals = visible_faces(occupancy, grid)
    local = transform_points(camera_from_ego, corners.reshape(-1, 3)).reshape(-1, 4, 3)  # camera axes
    towards = (normals @ camera_from_ego[:3, :3].T * local.mean(1)).sum(-1) < 0
    keep = towards & (local[..., 2].amin(-1) > 0.3)  # [F]
    local, shade = local[keep], 0.84 + 0.16 * normals[keep] @ torch.tensor([0.35, 0.0, 1.0])
    pixels = local @ intrinsics.T
    pixels = pixels[..., :2] / pixels[..., 2:]  # [F, 4, 2]
    centre = pixels.mean(1)
    inside = ((centre >= 0) & (centre < torch.tensor(overlay.size))).all(-1)  # [F]
    draw = ImageDraw.Draw(overlay)
    for face in local.norm(dim=-1).mean(-1).argsort(descending=True).tolist():  # 20 us a face
        if inside[face]:
            light = float(shade[face].clamp(0.5, 1))
            fill = tuple(int(channel * light) for channel in REFERRED)
            draw.polygon(
                [(u, v) for u, v in pixels[face].tolist()], fill=(*fill, 255), outline=(255, 255, 255, 150)
            )
    return bool(inside.any())


def clip_segments(a: Tensor, b: Tensor, size: tuple[int, int], *, near: float = 0.1) -> tuple[Tensor, Tensor]:
    """Pixels [E, 2, 2] of the visible parts of segments a-b [E, 3] (K . camera point), and which exist [E].

    Clipped (Cyrus and Beck) before the division: no end lies behind the camera or outside `size` (W, H).
    """
    width, height = size
    planes = torch.tensor(
        [[0.0, 0, 1], [1, 0, 0], [-1, 0, width], [0, 1, 0], [0, -1, height]], dtype=a.dtype
    )  # inside: plane . p >= bound
    bound = torch.tensor([near, 0, 0, 0, 0], dtype=a.dtype)
    start, change = a @ planes.T - bound, (b - a) @ planes.T  # [E, 5]
    crossing = -start / torch.where(change == 0, torch.ones_like(change), change)
    enter = torch.where(change > 0, crossing, torch.zeros_like(crossing)).amax(-1).clamp(min=0)  # [E]
    leave = torch.where(change < 0, crossing, torch.ones_like(crossing)).amin(-1).clamp(max=1)
    exists = (enter < leave) & ~((change == 0) & (start < 0)).any(-1)
    ends = torch.stack([a + enter[:, None] * (b - a), a + leave[:, None] * (b - a)], dim=1)  # [E, 2, 3]
    return ends[..., :2] / ends[..., 2:].clamp(min=near / 2), exists


def _draw_wireframe(
    draw: ImageDraw.ImageDraw,
    box: Tensor,
    label: str,
    camera_from_ego: Tensor,
    intrinsics: Tensor,
    size: tuple[int, int],
) -> bool:
    """Draw a box [7] with a cross on its front face and a tag; whether any of it is in the picture."""
    corners = transform_points(camera_from_ego, box_corners(box[None])[0]) @ intrinsics.T  # [8, 3]
    edges = torch.tensor([*_EDGES, _FRONT[::2], _FRONT[1::2]])  # [14, 2]
    pixels, exists = clip_segments(corners[edges[:, 0]], corners[edges[:, 1]], size)
    for colour, extra in (((255, 255, 255), 4), (REFERRED, 0)):
        for index in exists.nonzero()[:, 0].tolist():
            width = (4 if index < len(_EDGES) else 2) + extra
            draw.line([(u, v) for u, v in pixels[index].tolist()], fill=colour, width=width)
    if not exists.any():
        return False
    left, top = pixels[exists].reshape(-1, 2).amin(0).tolist()
    font = _font(28)
    tag_width = font.getlength(label) + 16
    left, top = min(max(left, 0), size[0] - tag_width), max(top - 44, 66)
    draw.rounded_rectangle((left, top, left + tag_width, top + 38), radius=8, fill=(122, 0, 66))
    draw.text((left + 8, top + 2), label, fill="white", font=font)
    return True


def _font(size: int) -> ImageFont.FreeTypeFont:
    """The font that comes with matplotlib, so that pictures look the same on every machine."""
    import matplotlib

    path = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(str(path), size)


def _title(name: str) -> str:
    """A camera's name for people: CAM_FRONT_LEFT is front left."""
    return name.removeprefix("CAM_").replace("_", " ").lower()
